// A board to draw on, with a pointer or with the keyboard, and how a drawing becomes a small picture.

import { h } from './dom.js'

const SIDE = 280
const FINE = 16 // pixels of a fine picture for each of a small one, which is their mean
const STEP = 8

/** A board for pictures of these pixels; `dark`: ink is light on a dark ground, as in MNIST. */
export function board({ width, height, dark, changed }) {
  const canvas = h('canvas', {
    class: 'board', width: SIDE, height: Math.round((SIDE * height) / width), tabindex: 0, role: 'application',
    'aria-label': 'Board to draw on. Arrow keys move the pen, Space puts it down or lifts it, Delete clears.',
  })
  const ink = canvas.getContext('2d', { willReadFrequently: true })
  const pen = { x: canvas.width / 2, y: canvas.height / 2, down: false }
  let empty = true

  const clear = () => {
    ink.fillStyle = dark ? '#000' : '#fff'
    ink.fillRect(0, 0, canvas.width, canvas.height)
    Object.assign(ink, { strokeStyle: dark ? '#fff' : '#000', lineWidth: Math.max(SIDE / 14, (SIDE / width) * 1.4), lineCap: 'round', lineJoin: 'round' })
    empty = true
    changed()
  }
  const line = (x, y) => {
    ink.beginPath()
    ink.moveTo(pen.x, pen.y)
    ink.lineTo(x + 0.01, y)
    ink.stroke()
    Object.assign(pen, { x, y })
    empty = false
    changed()
  }
  const place = (event) => {
    const box = canvas.getBoundingClientRect()
    return [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height]
  }
  canvas.addEventListener('pointerdown', (event) => {
    canvas.setPointerCapture(event.pointerId)
    const [x, y] = place(event)
    Object.assign(pen, { x, y, down: false })
    line(x, y)
  })
  canvas.addEventListener('pointermove', (event) => {
    if (event.buttons & 1) for (const one of event.getCoalescedEvents?.() ?? [event]) line(...place(one))
  })
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }
  canvas.addEventListener('keydown', (event) => {
    const move = moves[event.key]
    if (move) {
      const x = Math.min(Math.max(pen.x + move[0] * STEP, 0), canvas.width)
      const y = Math.min(Math.max(pen.y + move[1] * STEP, 0), canvas.height)
      if (pen.down) line(x, y)
      else Object.assign(pen, { x, y })
    } else if (event.key === ' ') {
      pen.down = !pen.down
      if (pen.down) line(pen.x, pen.y)
    } else if (event.key === 'Delete' || event.key === 'Backspace') clear()
    else return
    event.preventDefault()
  })
  clear()
  return { canvas, clear, isEmpty: () => empty, picture: (centred) => small(canvas, width, height, dark, centred) }
}

/** A canvas drawn smaller; `centred`: what is inked fills the middle, as in MNIST, or all of a very small one. */
function small(canvas, width, height, dark, centred) {
  const fine = h('canvas', { width: width * FINE, height: height * FINE })
  const pen = fine.getContext('2d')
  pen.fillStyle = dark ? '#000' : '#fff'
  pen.fillRect(0, 0, fine.width, fine.height)
  const box = centred ? inked(canvas, dark) : null
  if (box) {
    const share = Math.min(width, height) > 16 ? 20 / 28 : 1
    const scale = Math.min((fine.width * share) / box.width, (fine.height * share) / box.height)
    const [wide, tall] = [box.width * scale, box.height * scale]
    pen.drawImage(canvas, box.x, box.y, box.width, box.height, (fine.width - wide) / 2, (fine.height - tall) / 2, wide, tall)
  } else pen.drawImage(canvas, 0, 0, fine.width, fine.height)
  return halved(fine, width)
}

/** A canvas halved as long as it is twice as wide: browsers blend no more than a few pixels at once. */
function halved(canvas, width) {
  let one = canvas
  while (one.width >= width * 2) {
    const next = h('canvas', { width: one.width >> 1, height: Math.max(one.height >> 1, 1) })
    next.getContext('2d').drawImage(one, 0, 0, next.width, next.height)
    one = next
  }
  return one
}

function inked(canvas, dark) {
  const { data, width, height } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
  let [left, top, right, bottom] = [width, height, -1, -1]
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (data[(y * width + x) * 4] > 127 === dark) {
        left = Math.min(left, x); right = Math.max(right, x); top = Math.min(top, y); bottom = Math.max(bottom, y)
      }
    }
  }
  return right < 0 ? null : { x: left, y: top, width: right - left + 1, height: bottom - top + 1 }
}

/** The pixels of a picture as numbers in rows: [channels][height][width], of 0 to `most`. */
export function pixels(canvas, channels, most) {
  const { data, width, height } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
  const found = []
  for (let channel = 0; channel < channels; channel++) {
    for (let place = 0; place < width * height; place++) {
      const [r, g, b] = data.subarray(place * 4, place * 4 + 3)
      const value = channels === 1 ? 0.299 * r + 0.587 * g + 0.114 * b : [r, g, b][channel]
      found.push(Math.round((value / 255) * most * 1e4) / 1e4)
    }
  }
  return found
}

/** A file, decoded, turned as its EXIF orientation says. */
export async function decoded(file, width, height) {
  const bitmap = await createImageBitmap(file)
  const canvas = h('canvas', { width: bitmap.width, height: bitmap.height })
  canvas.getContext('2d').drawImage(bitmap, 0, 0)
  const out = h('canvas', { width, height })
  out.getContext('2d').drawImage(halved(canvas, width), 0, 0, width, height)
  return out
}

/** A canvas as a PNG file. */
export const png = (canvas) => new Promise((done) => canvas.toBlob(done, 'image/png'))
