// Editors of raw input, as a manifest declares it: a picture, a row of a table, a text.
//
// An editor is {element, value() → what an instance has of it, alone() → a body of its own or null, clear()}.

import { base64 } from './asking.js'
import { board, decoded, pixels, png } from './drawing.js'
import { h } from './dom.js'

const SMALL = 64 // pixels: a gray picture of at most as many a side is offered to be drawn

let made = 0

/** The editor of one entry of `preprocess`. */
export function editorOf(entry) {
  return { image: picture, table: row, text }[entry.do](entry)
}

/** A picture: drawn where it is small and gray, chosen, dropped, pasted, or taken. */
function picture(entry) {
  const gray = entry.color === 'gray'
  const source = pictureSource({ width: entry.width, height: entry.height, drawn: gray, dark: !entry.invert, name: entry.input })
  return {
    ...source,
    value: async () => ({ b64: await base64(await source.blob()) }),
    alone: async () => {
      const file = source.file()
      return file && { body: file, type: file.type || 'application/octet-stream', file: file.name }
    },
  }
}

/** Where a picture comes from: {element, blob(), file(), canvas(width, height), clear()}. */
export function pictureSource({ width, height, drawn, dark, name }) {
  let file = null
  let field = null
  const shown = h('img', { alt: '', class: 'shown', hidden: true })
  const said = h('p', { class: 'quiet', role: 'status' })
  const takes = (one) => {
    if (!one?.type.startsWith('image/')) { said.textContent = 'That is no picture.'; return }
    file = one
    pad?.canvas.classList.add('unused')
    if (shown.src) URL.revokeObjectURL(shown.src)
    Object.assign(shown, { src: URL.createObjectURL(one), hidden: false, alt: `The picture ${one.name}` })
    said.textContent = `${one.name}, ${Math.ceil(one.size / 1000)} kB`
  }
  const pad = drawn && Math.max(width, height) <= SMALL ? board({ width, height, dark, changed }) : null
  const centre = h('input', { type: 'checkbox', checked: true })
  const chosen = (capture) => h('input', {
    type: 'file', accept: 'image/*', capture, onchange: (event) => event.target.files[0] && takes(event.target.files[0]),
  })
  const drop = h('div', { class: 'drop' },
    h('p', {}, 'Drop or paste a picture, or'),
    h('p', { class: 'ways' },
      h('label', { class: 'button' }, 'Choose a file', chosen(null)),
      h('label', { class: 'button touch' }, 'Camera', chosen('environment'))),
    shown, said)
  field = h('fieldset', { class: 'picture' }, h('legend', {}, name), pad && h('div', { class: 'pad' }, pad.canvas,
    h('p', { class: 'ways' }, h('label', {}, centre, ' centre it'), h('button', { type: 'button', onclick: () => pad.clear() }, 'Clear board'))), drop)
  function changed() {
    file = null
    Object.assign(shown, { hidden: true })
    said.textContent = ''
    field?.querySelector('canvas')?.classList.remove('unused')
  }
  field.addEventListener('dragover', (event) => { event.preventDefault(); drop.classList.add('over') })
  field.addEventListener('dragleave', () => drop.classList.remove('over'))
  field.addEventListener('drop', (event) => { event.preventDefault(); drop.classList.remove('over'); takes(event.dataTransfer.files[0]) })
  field.pasted = takes
  const canvas = async (w, t) => {
    if (file) return decoded(file, w, t)
    if (!pad || pad.isEmpty()) throw new Error(pad ? 'Draw or choose a picture first.' : 'Choose a picture first.')
    return pad.picture(centre.checked)
  }
  return {
    element: field, canvas, file: () => file,
    blob: async () => file ?? png(await canvas(width, height)),
    numbers: async (channels, most) => pixels(await canvas(width, height), channels, most),
    clear: () => { pad?.clear(); changed() },
  }
}

/** A row: a field for each column. */
function row(entry) {
  const cells = entry.columns.map((column) => [column, column.is === 'category' ? choice(column) : number(column)])
  const fields = cells.map(([column, cell]) => h('div', { class: 'cell' },
    h('label', { for: cell.id }, column.name), cell))
  const value = () => Object.fromEntries(cells.map(([column, cell]) => {
    if (cell.value === '') return [column.name, null]
    return [column.name, column.is === 'category' ? cell.value : Number(cell.value)]
  }))
  return {
    element: h('fieldset', { class: 'row' }, h('legend', {}, entry.input), ...fields),
    value: async () => value(), alone: async () => null,
    clear: () => cells.forEach(([column, cell]) => { cell.value = ordinary(column) }),
  }
}

const ordinary = (column) =>
  column.is === 'category' ? column.missing ?? column.values[0]
    : String(Math.round((column.min !== null && column.min !== undefined ? (column.min + column.max) / 2 : column.mean ?? 0) * 1e4) / 1e4)

function number(column) {
  return h('input', {
    id: `cell${made++}`, type: 'number', step: 'any', '.value': ordinary(column),
    required: column.missing === null || column.missing === undefined, inputmode: 'decimal',
  })
}

function choice(column) {
  const optional = column.missing === null || column.missing === undefined ? [] : [h('option', { value: '' }, `(${column.missing})`)]
  const select = h('select', { id: `cell${made++}` }, ...column.values.map((one) => h('option', {}, one)), ...optional)
  select.value = ordinary(column)
  return select
}

/** A text. */
function text(entry) {
  const id = `text${made++}`
  const area = h('textarea', { id, rows: 5, required: true, spellcheck: 'false', placeholder: 'A text' })
  const said = h('span', { class: 'quiet' }, `at most ${entry.max_length ?? 512} tokens are read`)
  return {
    element: h('div', { class: 'field' }, h('label', { for: id }, entry.input), area, said),
    value: async () => area.value, alone: async () => null,
    clear: () => { area.value = '' },
  }
}
