// Rate and latency of a model, as the server counts them, drawn anew each second.

import { ask } from './asking.js'
import { h, milliseconds, svg } from './dom.js'

const SECONDS = 60
const [WIDTH, HEIGHT] = [300, 64]

/** Draw into `place` what `chosen()` → [name, version] is asked, as long as the page is looked at; → look now. */
export function watch(place, chosen) {
  const rate = graph('Requests a second', ['rate'])
  const latency = graph('Time in queue and model', ['p50', 'p99'])
  const total = h('p', { class: 'quiet' })
  place.append(rate.element, latency.element, total)
  let last = null
  let who = ''
  const points = []
  const look = async () => {
    const { status, json } = await ask({ path: '/page/live.json' })
    if (status === 403) { place.replaceChildren(h('p', { class: 'quiet' }, 'This key may not see metrics.')); return false }
    const [name, version] = chosen()
    const now = json?.models[name]?.[version]
    if (!now) return true
    if (who !== `${name}/${version}`) { last = null; points.length = 0; who = `${name}/${version}` }
    if (last) points.push(between(last, { ...now, now: json.now }, json.bounds))
    while (points.length > SECONDS) points.shift()
    last = { ...now, now: json.now }
    const latest = points.at(-1)
    rate.draw([points.map((one) => one.rate)], [latest ? `${Math.round(latest.rate)}/s` : '–'])
    latency.draw(['p50', 'p99'].map((key) => points.map((one) => one[key])), ['p50', 'p99'].map((key) => milliseconds(lastOf(points, key))))
    total.textContent = `So far ${now.requests.toLocaleString('en')} asked, ${now.errors.toLocaleString('en')} refused or failed`
    return true
  }
  const turn = async () => {
    let goes = true
    try { if (!document.hidden) goes = await look() } catch { /* the server is away; look again */ }
    if (goes) setTimeout(turn, 1000)
  }
  turn()
  return () => look().catch(() => {})
}

const lastOf = (points, key) => points.findLast((one) => one[key] !== null)?.[key] ?? null

/** What happened between two looks: requests a second, and the times below which half and 99 % of them stayed. */
function between(before, after, bounds) {
  const seconds = Math.max(after.now - before.now, 1e-3)
  const spent = (share) => {
    const parts = ['queue', 'compute'].map((key) => quantile(after[key].map((one, at) => one - before[key][at]), bounds, share))
    return parts.includes(null) ? null : (parts[0] + parts[1]) * 1000
  }
  return { rate: Math.max(after.requests - before.requests, 0) / seconds, p50: spent(0.5), p99: spent(0.99) }
}

/** The value below which a share of a histogram lies, between its bounds by line; null where it is empty. */
export function quantile(counts, bounds, share) {
  const all = counts.reduce((sum, one) => sum + one, 0)
  if (all <= 0) return null
  let below = 0
  for (const [at, count] of counts.entries()) {
    if (count > 0 && below + count >= all * share) {
      const low = at ? bounds[at - 1] : 0
      const high = bounds[at] ?? low
      return low + ((high - low) * (all * share - below)) / count
    }
    below += count
  }
  return bounds.at(-1)
}

function graph(title, keys) {
  const lines = keys.map((key) => svg('path', { class: `line ${key}` }))
  const area = svg('path', { class: 'area' })
  const values = keys.map((key) => h('b', { class: key }, '–'))
  const legend = keys.length > 1 ? keys.flatMap((key, at) => [h('span', { class: `key ${key}` }, key), values[at]]) : values
  const drawing = svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', 'aria-hidden': 'true' }, area, ...lines)
  const element = h('figure', { class: 'graph' }, h('figcaption', {}, h('span', {}, title), h('span', { class: 'values' }, ...legend)), drawing)
  const draw = (series, told) => {
    told.forEach((one, at) => { values[at].textContent = one })
    const most = Math.max(...series.flat().filter((one) => one !== null), 1e-9) * 1.1
    const x = (at) => WIDTH - ((series[0].length - 1 - at) / (SECONDS - 1)) * WIDTH
    const y = (value) => HEIGHT - 2 - (value / most) * (HEIGHT - 6)
    series.forEach((values_, place) => {
      let pen = 'M'
      const path = values_.map((value, at) => {
        if (value === null) { pen = 'M'; return '' }
        const part = `${pen}${x(at).toFixed(1)} ${y(value).toFixed(1)}`
        pen = 'L'
        return part
      })
      // a point that stands alone is drawn as a dot
      lines[place].setAttribute('d', path.join('').replace(/(M[\d. ]+)(?=M|$)/g, '$1h.01'))
    })
    const first = series[0]
    area.setAttribute('d', keys.length > 1 || !first.length ? '' : `M${x(0).toFixed(1)} ${HEIGHT}${first.map((value, at) => `L${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join('')}L${WIDTH} ${HEIGHT}Z`)
  }
  return { element, draw }
}
