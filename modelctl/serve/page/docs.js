// The OpenAPI document, read by people: operations by tag, each with its form, its answers, and a way to try it.

import { ask, caller, curlOf } from './asking.js'
import { byId, h, milliseconds } from './dom.js'

let made = 0

async function start() {
  const { status, json } = await ask({ path: '/openapi.json' })
  byId('key').hidden = status !== 401 && status !== 403
  if (!byId('key').hidden) {
    if (caller.key) byId('key-trouble').textContent = json?.error ?? 'That key is not known here.'
    byId('secret').focus()
    return
  }
  byId('about').textContent = `${json.info.description} Version ${json.info.version}.`
  byId('find-line').hidden = false
  const all = Object.entries(json.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, one]) => ({ path, method: method.toUpperCase(), one })))
  byId('api').replaceChildren(...json.tags.map(({ name, description }) => h('section', { 'aria-labelledby': `tag-${name}` },
    h('h2', { id: `tag-${name}` }, name), h('p', { class: 'quiet' }, description),
    ...all.filter(({ one }) => one.tags[0] === name).map((each) => operation(each, json)))))
  sift()
}

/** An operation, filled when it is opened: there are many. */
function operation({ path, method, one }, json) {
  const inside = h('div', { class: 'inside' })
  const fill = () => { if (!inside.childElementCount) inside.append(...opened(path, method, one, json)) }
  return h('details', { class: 'op', 'data-path': path, ontoggle: (event) => event.target.open && fill() },
    h('summary', {}, h('span', { class: 'method' }, method), h('span', { class: 'path' }, path), h('span', { class: 'quiet' }, one.summary)), inside)
}

function opened(path, method, one, json) {
  const parts = []
  if (one.parameters) parts.push(h('table', {}, ...one.parameters.map((each) => h('tr', {}, h('th', { scope: 'row' }, h('code', {}, each.name)), h('td', {}, each.in), h('td', {}, each.description)))))
  for (const [type, content] of Object.entries(one.requestBody?.content ?? {})) parts.push(schema(`Body, ${type}`, content.schema, json))
  parts.push(h('table', {}, h('caption', { class: 'quiet' }, 'Answers'), ...Object.entries(one.responses).map(([status, each]) => {
    const known = resolved(each, json)
    return h('tr', {}, h('th', { scope: 'row' }, h('code', {}, status)), h('td', {}, known.description), h('td', { class: 'quiet' }, Object.keys(known.headers ?? {}).join(', ')))
  })))
  const good = resolved(one.responses['200'], json).content ?? {}
  for (const [type, content] of Object.entries(good)) if (Object.keys(content.schema).length) parts.push(schema(`Answer, ${type}`, content.schema, json))
  parts.push(trial(path, method, one))
  return parts
}

const schema = (title, what, json) => h('details', {}, h('summary', {}, title), h('pre', { tabindex: 0 }, JSON.stringify(whole(what, json, 3), null, 1)))

const resolved = (what, json) => (what.$ref ? what.$ref.slice(2).split('/').reduce((at, key) => at[key.replaceAll('~1', '/').replaceAll('~0', '~')], json) : what)

/** A schema with what it refers to in its place, so deep. */
function whole(what, json, deep) {
  if (Array.isArray(what)) return what.map((one) => whole(one, json, deep))
  if (!what || typeof what !== 'object') return what
  if (what.$ref) return deep ? whole(resolved(what, json), json, deep - 1) : what.$ref
  return Object.fromEntries(Object.entries(what).map(([key, one]) => [key, whole(one, json, deep)]))
}

/** A form that sends the request, filled with the example. */
function trial(path, method, one) {
  const id = `body${made++}`
  const [type, content] = Object.entries(one.requestBody?.content ?? {})[0] ?? []
  const example = content && (content.example ?? Object.values(content.examples ?? {})[0]?.value)
  const area = type && h('textarea', { id, rows: 6, class: 'code', spellcheck: 'false', '.value': example === undefined ? '' : JSON.stringify(example) })
  const line = h('pre', { class: 'code', tabindex: 0, hidden: true })
  const said = h('div', { role: 'status' })
  const send = async (event) => {
    event.preventDefault()
    const request = { path, method, type, body: area?.value }
    Object.assign(line, { hidden: false, textContent: curlOf(request) })
    try {
      const came = await ask(request)
      said.replaceChildren(h('p', { class: came.status < 400 ? 'quiet' : 'trouble' }, `${came.status} after ${milliseconds(came.ms)}`),
        h('pre', { tabindex: 0 }, came.text.slice(0, 20000)))
    } catch { said.replaceChildren(h('p', { class: 'trouble' }, 'The server can’t be reached.')) }
  }
  return h('form', { class: 'field', onsubmit: send }, area && h('label', { for: id }, type), area, h('p', { class: 'ways' }, h('button', { class: 'main' }, 'Send')), line, said)
}

/** Show the paths that are looked for. */
function sift() {
  const more = byId('more').checked
  for (const one of document.querySelectorAll('.op')) {
    one.hidden = !one.dataset.path.includes(byId('find').value) || (!more && /\/(versions|labels)\//.test(one.dataset.path))
  }
}

byId('find').addEventListener('input', sift)
byId('more').addEventListener('change', sift)
byId('key').addEventListener('submit', (event) => {
  event.preventDefault()
  caller.key = byId('secret').value.trim()
  start()
})
start()
