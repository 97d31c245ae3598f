// Requests: sent with the caller's key, timed, and told as curl would send them.

const LONG = 4000 // letters of a body that still stand in a line to be copied

export const caller = { key: '' }

/** Send {path, type, body, name?}; what came back, and after how many milliseconds. */
export async function ask(request) {
  const headers = caller.key ? { Authorization: `Bearer ${caller.key}` } : {}
  if (request.type) headers['Content-Type'] = request.type
  const began = performance.now()
  const response = await fetch(request.path, {
    method: request.method ?? (request.body === undefined ? 'GET' : 'POST'),
    headers, body: request.body, cache: 'no-cache', credentials: 'same-origin',
  })
  const text = await response.text()
  const ms = performance.now() - began
  let json = null
  try { json = JSON.parse(text) } catch { /* told as text */ }
  return { status: response.status, headers: response.headers, text, json, ms }
}

/** The line that sends the same request from a shell. */
export function curlOf(request) {
  const line = ['curl -sS', quoted(location.origin + request.path)]
  if (caller.key) line.push('-H "Authorization: Bearer $KEY"')
  if (request.type) line.push(`-H ${quoted(`Content-Type: ${request.type}`)}`)
  if (request.file) line.push(`--data-binary ${quoted(`@${request.file}`)}`)
  else if (request.body !== undefined && request.body.length > LONG) {
    return `${line.join(' ')} --data-binary @body.json\n# body.json: ${request.body.slice(0, 200)}…`
  } else if (request.body !== undefined) line.push(`-d ${quoted(request.body)}`)
  return line.join(' ')
}

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`

/** The milliseconds that the server says went where (Server-Timing), by name. */
export function spent(headers) {
  const found = (headers.get('server-timing') ?? '').matchAll(/([\w-]+);dur=([\d.]+)/g)
  return Object.fromEntries([...found].map(([, name, ms]) => [name, Number(ms)]))
}

/** A blob as base64. */
export async function base64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer())
  let text = ''
  for (let place = 0; place < bytes.length; place += 8192) text += String.fromCharCode(...bytes.subarray(place, place + 8192))
  return btoa(text)
}
