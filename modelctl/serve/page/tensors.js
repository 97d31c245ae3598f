// Editors of tensors, for a model that declares no raw input: numbers as nested lists, or drawn where they look like
// a picture.

import { h, nested, shapeOf } from './dom.js'
import { pictureSource } from './editors.js'

const MOST = 4096 // numbers that are still shown as text

let made = 0

/** The height, width and channels of an input that looks like a picture; null for any other. */
export function pictureShape(tensor) {
  if (!/^(FP|BF|U?INT)/.test(tensor.datatype)) return null
  const [, ...shape] = tensor.shape
  if (shape.some((one) => typeof one !== 'number')) return null
  if (shape.length === 3 && [1, 3].includes(shape[0])) return { channels: shape[0], height: shape[1], width: shape[2], last: false }
  if (shape.length === 3 && [1, 3].includes(shape[2])) return { channels: shape[2], height: shape[0], width: shape[1], last: true }
  if (shape.length === 2 && shape[0] === shape[1] && shape[0] >= 8) return { channels: 1, height: shape[0], width: shape[1], last: false }
  const side = Math.sqrt(shape[0])
  if (shape.length === 1 && Number.isInteger(side) && side >= 8) return { channels: 1, height: side, width: side, last: false }
  return null
}

/** The editor of one input; `free`: the size of dimensions that are free and not the first. */
export function tensorEditor(tensor, free) {
  const shape = tensor.shape.map((one, axis) => (typeof one === 'number' ? one : axis === 0 ? 1 : free))
  const count = shape.reduce((all, one) => all * one, 1)
  const id = `tensor${made++}`
  const said = h('p', { class: 'quiet', role: 'status', id: `${id}-said` })
  const area = h('textarea', { id, rows: 6, spellcheck: 'false', class: 'code', 'aria-describedby': `${id}-said` })
  let large = null // what is not shown, as it is too long
  const put = (list) => {
    large = count > MOST ? nested(list, shape) : null
    area.value = large ? `${count.toLocaleString('en')} numbers` : JSON.stringify(nested(list, shape))
    area.readOnly = large !== null
    tell()
  }
  const read = () => {
    if (large) return large
    const lists = JSON.parse(area.value)
    const found = shapeOf(lists)
    const wrong = found.length !== shape.length || tensor.shape.some((one, axis) => typeof one === 'number' && one !== found[axis])
    if (wrong) throw new Error(`${tensor.name}: these lists have the shape [${found}], the model takes [${tensor.shape}].`)
    return lists
  }
  const tell = () => {
    try { said.textContent = `shape [${shapeOf(read())}]` } catch (error) { said.textContent = error instanceof SyntaxError ? 'Not JSON yet.' : error.message }
  }
  area.addEventListener('input', tell)
  const fill = (of) => () => put(Array.from({ length: count }, (_, place) => of(place)))
  const example = fill((place) => exampleOf(tensor.datatype, place))
  const ways = [['Example', example]]
  if (!['BYTES', 'BOOL'].includes(tensor.datatype)) ways.push(['Zeros', fill(() => 0)])
  if (tensor.datatype.startsWith('FP')) ways.push(['Random', fill(() => Math.round(normal() * 1e3) / 1e3)])
  const buttons = ways.map(([name, act]) => h('button', { type: 'button', onclick: act }, name))
  const looks = pictureShape(tensor)
  const drawn = looks && fromPicture(tensor, looks, shape, put)
  const numbers = h('div', { class: 'field' }, h('label', { for: id }, `${drawn ? 'as numbers' : tensor.name} `,
    h('span', { class: 'quiet' }, `${tensor.datatype} [${tensor.shape.join(', ')}]`)), area, said, h('p', { class: 'ways' }, ...buttons))
  if (drawn) {
    area.required = false
    numbers.addEventListener('input', () => drawn.off())
    buttons.forEach((one) => one.addEventListener('click', () => drawn.off()))
  } else example()
  const element = drawn
    ? h('div', {}, drawn.element, h('details', {}, h('summary', {}, 'As numbers'), numbers)) : numbers
  return {
    element,
    value: async () => {
      if (drawn?.used()) await drawn.fill()
      return read()
    },
    clear: () => { drawn?.clear(); large = null; if (drawn) { area.value = ''; area.readOnly = false } else example() },
  }
}

/** A picture as a tensor: its pixels from 0 to a largest value. */
function fromPicture(tensor, looks, shape, put) {
  const source = pictureSource({ ...looks, drawn: looks.channels === 1, dark: true, name: tensor.name })
  const whole = /INT/.test(tensor.datatype)
  const id = `most${made++}`
  const most = h('input', { id, type: 'number', step: 'any', '.value': whole ? '255' : '1', required: true })
  source.element.append(h('p', { class: 'ways' }, h('label', { for: id }, 'white is'), most))
  let used = true
  source.element.addEventListener('pointerdown', () => { used = true })
  source.element.addEventListener('keydown', () => { used = true })
  source.element.addEventListener('change', () => { used = true })
  const fill = async () => {
    const planes = await source.numbers(looks.channels, Number(most.value))
    const size = looks.width * looks.height
    let list = looks.last ? planes.map((_, place) => planes[(place % looks.channels) * size + Math.floor(place / looks.channels)]) : planes
    if (whole) list = list.map(Math.round)
    put(Array.from({ length: shape[0] }, () => list).flat())
  }
  return { element: source.element, fill, used: () => used, off: () => { used = false }, clear: () => { source.clear(); used = true } }
}

function exampleOf(datatype, place) {
  if (datatype === 'BYTES') return 'text'
  if (datatype === 'BOOL') return true
  return datatype.startsWith('FP') ? (place % 9 + 1) / 10 : 1
}

/** A number of the normal distribution (Box and Muller). */
const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random())
