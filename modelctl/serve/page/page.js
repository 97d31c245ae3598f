// The page: a model is chosen, asked, and its answer told.

import { answerOf } from './answers.js'
import { ask, caller, curlOf, spent } from './asking.js'
import { byId, digest, h, milliseconds } from './dom.js'
import { editorOf } from './editors.js'
import { chainOf } from './lineage.js'
import { watch } from './live.js'
import { tensorEditor } from './tensors.js'

const state = { models: [], model: null, version: null, editors: [], asked: 0, look: () => {} }

async function start() {
  const { status, json } = await ask({ path: '/page/models.json' })
  if (status === 401 || status === 403) { who(json); return }
  byId('key').hidden = true
  state.models = json ?? []
  if (!state.models.length) { byId('title').textContent = 'No model is loaded'; return }
  byId('bench').hidden = false
  byId('model').replaceChildren(...state.models.map((one) => h('option', {}, one.name)))
  byId('pick-model').hidden = state.models.length === 1
  const [, name, version] = /^(.*)@(.*)$/.exec(decodeURIComponent(location.hash.slice(1))) ?? []
  choose(name, version)
  state.look = watch(byId('live'), () => [state.model.name, state.version.version])
}

/** Ask for a key: the server wants one. */
function who(json) {
  byId('key').hidden = false
  if (caller.key) byId('key-trouble').textContent = json?.error ?? 'That key is not known here.'
  byId('secret').focus()
}

function choose(name, version) {
  state.model = state.models.find((one) => one.name === name) ?? state.models[0]
  const versions = state.model.versions
  state.version = versions.find((one) => one.version === version) ?? versions.at(-1)
  byId('model').value = state.model.name
  byId('version').replaceChildren(...versions.map((one) => h('option', {}, one.version)))
  byId('version').value = state.version.version
  byId('pick-version').hidden = versions.length === 1
  document.title = `${state.model.name} · modelctl`
  byId('title').textContent = state.model.name
  byId('digest').replaceChildren(digest(state.version.digest))
  byId('chain').replaceChildren(chainOf(state.version.chain))
  byId('manifest').open = false
  fields()
  quiet()
  state.look()
}

/** The editors of what the chosen model takes. */
function fields() {
  const { declared, inputs, free } = state.version
  state.editors = declared.length ? declared.map(editorOf) : inputs.map((one) => tensorEditor(one, free))
  const trouble = state.version.json || declared.length ? null
    : h('p', { role: 'note' }, 'This model takes BF16, which has no form in JSON: it is asked with binary data only.')
  byId('fields').replaceChildren(...(trouble ? [trouble] : state.editors.map((one) => one.element)))
  byId('send').disabled = trouble !== null
}

function quiet() {
  state.asked++
  byId('answer').replaceChildren(h('p', { class: 'quiet' }, 'Nothing was asked yet.'))
  byId('took').textContent = ''
  byId('raw').hidden = true
  byId('curl').textContent = 'Ask first; then this is the line that asks the same.'
  byId('copied').textContent = ''
}

/** The request that asks what the editors hold. */
async function request() {
  const { declared, inputs } = state.version
  const only = state.model.versions.length === 1
  const path = `/predict/${encodeURIComponent(state.model.name)}${only ? '' : `/versions/${encodeURIComponent(state.version.version)}`}`
  const json = (value) => ({ path, type: 'application/json', body: JSON.stringify(value) })
  if (!declared.length) {
    const values = await Promise.all(state.editors.map((one) => one.value()))
    return json({ inputs: Object.fromEntries(inputs.map((one, at) => [one.name, values[at]])) })
  }
  if (declared.length === 1) {
    const alone = await state.editors[0].alone()
    return alone ? { path, ...alone } : json({ instances: [await state.editors[0].value()] })
  }
  const instance = {}
  for (const [at, entry] of declared.entries()) {
    const value = await state.editors[at].value()
    Object.assign(instance, entry.do === 'table' ? value : { [entry.input]: value })
  }
  return json({ instances: [instance] })
}

async function send(event) {
  event.preventDefault()
  const number = ++state.asked
  const place = byId('answer')
  byId('bench').setAttribute('aria-busy', 'true')
  try {
    const asked = await request()
    byId('curl').textContent = curlOf(asked)
    byId('copied').textContent = ''
    const came = await ask(asked)
    if (number === state.asked) tell(came)
  } catch (error) {
    if (number === state.asked) place.replaceChildren(h('p', { class: 'trouble' }, error instanceof TypeError ? 'The server can’t be reached.' : error.message))
  }
  byId('bench').removeAttribute('aria-busy')
}

function tell(came) {
  const good = came.status === 200
  byId('answer').replaceChildren(...(good ? answerOf(came.json) : [h('p', { class: 'trouble' }, `${came.status}: ${came.json?.error ?? came.text}`)]))
  const { total, read, queue, compute } = spent(came.headers)
  const inside = total === undefined ? '' : `, ${milliseconds(total)} in the server: `
    + `${milliseconds(read)} to read it, ${milliseconds(queue)} waiting, ${milliseconds(compute)} in the model`
  const by = (came.headers.get('modelctl-model') ?? '').split('@sha256:')
  byId('took').replaceChildren(`${milliseconds(came.ms)} there and back`, inside,
    ...(by[1] ? [' · by ', by[0], ' ', digest(by[1])] : []))
  byId('raw').hidden = false
  byId('raw').querySelector('pre').textContent = came.json ? pretty(came.json) : came.text
}

/** JSON with a line for each member, but lists of numbers on one. */
const pretty = (json) => JSON.stringify(json, null, 2).replace(/\[\s+([-\d.eE+,\s]|null)+?\s+\]/g, (one) => one.replace(/\s+/g, ' '))

byId('ask').addEventListener('submit', send)
byId('ask').addEventListener('reset', () => { state.editors.forEach((one) => one.clear()); quiet() })
byId('model').addEventListener('change', (event) => { choose(event.target.value); remember() })
byId('version').addEventListener('change', (event) => { choose(state.model.name, event.target.value); remember() })
const remember = () => history.replaceState(null, '', `#${encodeURIComponent(`${state.model.name}@${state.version.version}`)}`)
byId('copy').addEventListener('click', async () => {
  try {
    await navigator.clipboard.writeText(byId('curl').textContent)
    byId('copied').textContent = 'Copied.'
  } catch {
    getSelection().selectAllChildren(byId('curl'))
    byId('copied').textContent = 'Selected; press Ctrl C.'
  }
})
byId('manifest').addEventListener('toggle', async (event) => {
  if (!event.target.open) return
  const { name } = state.model
  const path = `/v2/models/${encodeURIComponent(name)}/versions/${encodeURIComponent(state.version.version)}/manifest`
  event.target.querySelector('pre').textContent = (await ask({ path })).text
})
document.addEventListener('paste', (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith('image/'))
  const field = document.querySelector('fieldset.picture')
  if (file && field) { event.preventDefault(); field.pasted(file) }
})
byId('key').addEventListener('submit', (event) => {
  event.preventDefault()
  caller.key = byId('secret').value.trim()
  start()
})
start()
