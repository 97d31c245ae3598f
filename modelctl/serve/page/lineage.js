// The chain from a model back to the trained checkpoint, drawn: the model first, below each what it was made from.

import { digest, h } from './dom.js'

/** The chain of records, the model itself first. */
export function chainOf(records) {
  const known = new Map(records.map((one) => [one.digest, one]))
  const told = new Set()
  const node = (record) => {
    const again = told.has(record.digest)
    if (record !== records[0]) told.add(record.digest) // a step may leave the bytes as they were
    const parents = again ? [] : record.parents.map((one) => known.get(one) ?? { name: 'not told of', digest: one, parents: [], figures: [] })
    return h('li', { class: parents.length ? '' : 'root' },
      h('article', {},
        h('p', { class: 'step' }, record.step ?? (again ? 'told above' : parents.length ? '' : 'checkpoint')),
        h('p', { class: 'name' }, record.name, record.format ? h('span', { class: 'quiet' }, ` ${record.format}`) : null),
        h('p', {}, digest(record.digest)),
        record.figures.length ? h('p', { class: 'figures' }, ...record.figures.map((one) => h('span', {}, one))) : null),
      parents.length ? h('ol', { class: parents.length > 1 ? 'fork' : '' }, ...parents.map(node)) : null)
  }
  if (records.length === 1 && !records[0].step) {
    return h('p', {}, 'Nothing is told of how it was made: ', digest(records[0].digest))
  }
  return h('ol', { class: 'chain' }, node(records[0]))
}
