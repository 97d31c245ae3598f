// Answers, told to people: labels with bars of their scores, vectors, tensors.

import { flat, h, shapeOf, svg, told } from './dom.js'

const BARS = 10
const FEW = 32 // a longer vector is told as numbers, unless it is of shares
const SHOWN = 256

/** What is shown of the JSON of an answer. */
export function answerOf(json) {
  if (json?.predictions) {
    return json.predictions.map((one, place) => {
      const made = h('div', {}, prediction(one))
      return json.predictions.length > 1 ? h('section', {}, h('h3', {}, `Instance ${place + 1}`), made) : made
    })
  }
  const outputs = Object.entries(json?.outputs ?? {})
  return outputs.map(([name, lists]) => h('section', {}, h('h3', {}, name, ' ', h('span', { class: 'quiet' }, `[${shapeOf(lists)}]`)), tensor(lists)))
}

function prediction(one) {
  if (Array.isArray(one) && one.length && one[0]?.score !== undefined) return bars(one.map((each) => [nameOf(each), each.score]))
  if (one?.score !== undefined) return h('div', {}, h('p', { class: 'big' }, nameOf(one)), bars([[nameOf(one), one.score]]))
  if (Array.isArray(one)) return one.length ? tensor([one]) : h('p', { class: 'quiet' }, 'Nothing is above the threshold.')
  if (one && typeof one === 'object') {
    return h('div', {}, ...Object.entries(one).map(([name, each]) => h('section', {}, h('h3', {}, name), prediction(each))))
  }
  return h('p', { class: 'big' }, told(one))
}

const areShares = (all) => all.every((one) => one >= 0 && one <= 1) && Math.abs(all.reduce((sum, one) => sum + one, 0) - 1) < 0.01

const nameOf = (one) => one.label ?? `class ${one.index}`

/** Names with scores: bars from 0, on a scale that holds all of them, and 0 to 1 where they are shares. */
function bars(pairs) {
  const scores = pairs.map(([, score]) => score ?? 0)
  const low = Math.min(0, ...scores)
  const high = scores.every((one) => one >= 0 && one <= 1) ? 1 : Math.max(0, ...scores)
  const at = (score) => ((score - low) / (high - low || 1)) * 100
  return h('ol', { class: 'bars' }, ...pairs.map(([name, score], place) => h('li', { class: score < 0 ? 'below' : '' },
    h('span', { class: 'name' }, name), h('span', { class: 'score' }, told(score)),
    svg('svg', { viewBox: '0 0 100 1', preserveAspectRatio: 'none', 'aria-hidden': 'true' },
      svg('rect', { width: 100, height: 1, class: 'track' }),
      svg('rect', { x: at(Math.min(scores[place], 0)), width: Math.abs(at(scores[place]) - at(0)), height: 1, class: 'fill' })))))
}

/** A tensor: a row of a few scores as bars, else its numbers and what they have in common. */
function tensor(lists) {
  const all = flat(lists)
  const numbers = all.filter((one) => typeof one === 'number')
  const shape = shapeOf(lists)
  if (all.length === 1) return h('p', { class: 'big' }, told(all[0]))
  if (numbers.length === all.length && shape.length === 2 && shape[0] === 1 && (shape[1] <= FEW || areShares(all))) {
    const ranked = all.map((score, place) => [`[${place}]`, score]).sort((a, b) => b[1] - a[1])
    const rest = ranked.length - BARS
    return h('div', {}, bars(ranked.slice(0, BARS)), rest > 0 ? h('p', { class: 'quiet' }, `and ${rest} more`) : null)
  }
  const parts = []
  if (numbers.length) {
    const mean = numbers.reduce((sum, one) => sum + one, 0) / numbers.length
    const ends = numbers.reduce(([low, high], one) => [Math.min(low, one), Math.max(high, one)], [Infinity, -Infinity])
    parts.push(h('p', { class: 'quiet' }, `${all.length.toLocaleString('en')} numbers from ${told(ends[0])} to ${told(ends[1])}, mean ${told(mean)}`))
  }
  const text = all.slice(0, SHOWN).map((one) => (typeof one === 'string' ? one : told(one))).join('  ')
  parts.push(h('pre', { tabindex: 0 }, text + (all.length > SHOWN ? '  …' : '')))
  return h('div', {}, ...parts)
}
