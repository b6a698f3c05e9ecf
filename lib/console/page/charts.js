import { Chart, STEPS } from './chart.js'
import { $, el } from './element.js'
import { count, duration, rate } from './format.js'
import { gateway } from './gateway.js'

const HOUR_MS = 3_600_000
/** How much later than the server the page asks for a sample. */
const GRACE_MS = 500
const FALLBACK_INTERVAL_MS = 10_000

const noCalls = 'No calls in the last hour'
const callSeries = direction => [
  { name: 'median', valueOf: ({ calls }) => calls[direction].median },
  { name: '95th percentile', short: '95th', valueOf: ({ calls }) => calls[direction].p95 }
]

const specs = [
  { title: 'Connected to this node', series: [{ name: 'connected', valueOf: ({ connected }) => connected }], format: count, floor: 1, nothing: 'The first value appears within 10 seconds' },
  {
    title: 'Messages',
    series: [{ name: 'received', valueOf: ({ messages }) => messages.in }, { name: 'sent', valueOf: ({ messages }) => messages.out }],
    format: rate,
    floor: 1,
    nothing: 'The first value appears within 10 seconds'
  },
  { title: 'Calls to devices', series: callSeries('out'), format: duration, floor: 1, nothing: noCalls },
  { title: 'Calls of devices', series: callSeries('in'), format: duration, floor: 1, nothing: noCalls }
]

/** The charts of the last hour, kept up to date, and their numbers as a table. */
export class Charts {
  /** Oldest first. */
  #samples = []
  #slots = []
  #selected
  #timer
  #charts = specs.map(spec => new Chart(spec, step => this.#select(step)))

  constructor () {
    $('plots').append(...this.#charts.map(({ element }) => element))
    $('numbers').addEventListener('toggle', () => this.#drawTable())
    this.#draw()
  }

  /** Fetches what is new, now and whenever there is a further sample. Returns the answer of the server. */
  async load () {
    clearTimeout(this.#timer)
    const answer = await gateway.samples(this.#samples.at(-1)?.at ?? 0)
    if (answer.ok) this.#add(answer.body)
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => void this.load(), this.#untilNext(answer))
    return answer
  }

  #add ({ samples }) {
    if (samples.length === 0) return
    this.#samples = [...this.#samples, ...samples].slice(-STEPS)
    this.#draw()
  }

  #untilNext ({ ok, body }) {
    const interval = ok ? body.interval : FALLBACK_INTERVAL_MS
    const age = Date.now() - (this.#samples.at(-1)?.at ?? 0)
    // the clocks of server and browser may differ
    return age > 0 && age < interval ? interval - age + GRACE_MS : interval
  }

  #draw () {
    const end = this.#samples.at(-1)?.at ?? Date.now()
    const step = HOUR_MS / STEPS
    this.#slots = Array.from({ length: STEPS })
    for (const sample of this.#samples) this.#slots[STEPS - 1 - Math.round((end - sample.at) / step)] = sample
    this.#slots.length = STEPS
    for (const chart of this.#charts) chart.draw(this.#slots)
    this.#show()
    this.#drawTable()
  }

  #select (step) {
    this.#selected = step === STEPS - 1 ? undefined : step
    this.#show()
  }

  #show () {
    const step = this.#selected ?? STEPS - 1
    for (const chart of this.#charts) chart.show(step, this.#slots[step], this.#selected === undefined)
  }

  #drawTable () {
    if (!$('numbers').open) return
    const columns = specs.flatMap(({ title, series, format }) => series.map(({ name, valueOf }) => ({ title, name, text: sample => valueOf(sample) === undefined ? '–' : format(valueOf(sample)) })))
    const rows = this.#samples.toReversed().map(sample =>
      el('tr', {}, el('th', { scope: 'row' }, new Date(sample.at).toLocaleTimeString('en-GB')), ...columns.map(({ text }) => el('td', {}, text(sample)))))
    $('numbers-place').replaceChildren(el('table', {},
      el('thead', {},
        el('tr', {}, el('th', { rowspan: 2, scope: 'col' }, 'Time'), ...specs.map(({ title, series }) => el('th', { colspan: series.length, scope: 'colgroup' }, title))),
        el('tr', {}, ...columns.map(({ name }) => el('th', { scope: 'col' }, name)))),
      el('tbody', {}, ...rows)))
  }
}
