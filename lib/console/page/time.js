import { el } from './element.js'

const words = new Intl.RelativeTimeFormat('en', { style: 'narrow' })
const units = [['day', 86_400_000], ['hour', 3_600_000], ['minute', 60_000], ['second', 1_000]]

/** "12s ago", "in 3h": a moment, seen from now. */
function relative (at) {
  const ahead = at - Date.now()
  const [unit, size] = units.find(([, size]) => Math.abs(ahead) >= size) ?? []
  return unit ? words.format(Math.trunc(ahead / size), unit) : 'now'
}

/** An element that shows how far away a moment is, and updates itself. */
export function time (at) {
  return el('time', { datetime: new Date(at).toISOString(), title: new Date(at).toLocaleString() }, relative(at))
}

setInterval(() => {
  if (document.hidden) return
  for (const element of document.querySelectorAll('time')) {
    const text = relative(Date.parse(element.dateTime))
    if (element.textContent !== text) element.textContent = text
  }
}, 1_000)
