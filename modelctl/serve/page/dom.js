// Elements, made and filled; numbers and digests, told.

const SVG = 'http://www.w3.org/2000/svg'

/** An element with attributes (`on…`: listeners; `.name`: properties) and children (strings are text). */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children)
}

/** The same, of SVG. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children)
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value)
    else if (name.startsWith('.')) element[name.slice(1)] = value
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value)
  }
  element.append(...children.flat().filter((one) => one !== null && one !== undefined))
  return element
}

export const byId = (id) => document.getElementById(id)

/** A number in as few letters as tell it. */
export function told(value) {
  if (value === null) return 'not a number'
  if (typeof value !== 'number') return String(value)
  if (Number.isInteger(value)) return String(value)
  const size = Math.abs(value)
  return size >= 1e-3 && size < 1e6 ? value.toPrecision(4) : value.toExponential(2)
}

/** A time in milliseconds. */
export const milliseconds = (ms) =>
  ms === null ? '–' : ms >= 100 ? `${ms.toFixed(0)} ms` : ms >= 1 ? `${ms.toFixed(1)} ms` : `${ms.toFixed(2)} ms`

/** A digest as people look at it; all of it on hover, and when it is copied. */
export const digest = (sha256) =>
  h('code', { class: 'sha', title: `sha256:${sha256}` }, `sha256:${sha256.slice(0, 12)}`)

/** All numbers of nested lists, in order. */
export const flat = (lists) => (Array.isArray(lists) ? lists.flat(Infinity) : [lists])

/** The shape of nested lists. */
export function shapeOf(lists) {
  const shape = []
  for (let one = lists; Array.isArray(one); one = one[0]) shape.push(one.length)
  return shape
}

/** A flat list, nested to a shape. */
export function nested(list, shape) {
  let lists = list
  for (const size of shape.slice(1).reverse()) {
    const rows = []
    for (let place = 0; place < lists.length; place += size) rows.push(lists.slice(place, place + size))
    lists = rows
  }
  return shape.length ? lists : list[0]
}
