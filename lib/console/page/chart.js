import { el } from './element.js'
import { ceiling } from './format.js'

const NAMESPACE = 'http://www.w3.org/2000/svg'
/** Steps of the time axis: one hour of samples. The height is in units of its own: the chart is stretched. */
export const STEPS = 360
const HEIGHT = 100

/** A line chart of the last hour, drawn with SVG, with a slider over it that selects a moment. */
export class Chart {
  #spec
  #svg = svg('svg', { viewBox: `0 0 ${STEPS} ${HEIGHT}`, preserveAspectRatio: 'none', 'aria-hidden': 'true' })
  #slider
  #moment = el('span', { class: 'moment' })
  #top = el('span', { class: 'top-label', 'aria-hidden': 'true' })
  #nothing
  #values
  #cursor = svg('path', { class: 'cursor' })
  #lines

  /**
   * `spec` has a `title`, `series` of `{ name, short?, valueOf }`, a `format` of values, the text of an empty chart, and the least maximum of its axis.
   * `onSelect` is called with a step of the axis, or with undefined.
   */
  constructor (spec, onSelect) {
    this.#spec = spec
    this.#lines = spec.series.map((_, at) => svg('path', { class: `series series-${at}` }))
    this.#values = spec.series.map(() => el('dd'))
    this.#nothing = el('p', { class: 'nothing' }, spec.nothing)
    this.#slider = el('input', { type: 'range', min: 0, max: STEPS - 1, step: 1, value: STEPS - 1, 'aria-label': `${spec.title}, moment of the last hour` })
    this.#slider.addEventListener('input', () => onSelect(Number(this.#slider.value)))
    this.#slider.addEventListener('blur', () => onSelect(undefined))
    this.#svg.append(svg('path', { class: 'grid', d: `M0 ${HEIGHT / 2}H${STEPS}M${STEPS / 4} 0V${HEIGHT}M${STEPS / 2} 0V${HEIGHT}M${STEPS * 3 / 4} 0V${HEIGHT}` }), ...this.#lines.toReversed(), this.#cursor)
    const canvas = el('div', { class: 'canvas' }, this.#svg, this.#top, this.#nothing, this.#slider)
    canvas.addEventListener('pointermove', event => onSelect(stepAt(event.offsetX / canvas.clientWidth)))
    canvas.addEventListener('pointerleave', () => onSelect(undefined))
    this.element = el('figure', { class: 'plot' },
      el('figcaption', {}, el('span', { class: 'title' }, spec.title), this.#moment),
      el('dl', { class: 'legend' }, ...spec.series.map((one, at) => el('div', {}, el('dt', {}, el('span', { class: `key series-${at}`, 'aria-hidden': 'true' }), ...labelOf(one)), this.#values[at]))),
      canvas,
      el('div', { class: 'axis', 'aria-hidden': 'true' }, el('span', {}, '60 min ago'), el('span', {}, '30 min ago'), el('span', {}, 'now')))
  }

  /** `slots` has a sample, or nothing, for each step of the axis. */
  draw (slots) {
    const { series, format, floor } = this.#spec
    const rows = series.map(({ valueOf }) => slots.map(sample => sample && valueOf(sample)))
    const max = ceiling(Math.max(floor, ...rows.flat().filter(value => value !== undefined)))
    rows.forEach((row, at) => this.#lines[at].setAttribute('d', pathOf(row, max)))
    this.#top.textContent = format(max)
    this.#nothing.hidden = rows.some(row => row.some(value => value !== undefined))
    this.#top.hidden = !this.#nothing.hidden
  }

  /** Shows the values of a step; `isLatest` if no other one is selected. */
  show (step, sample, isLatest) {
    const { series, format } = this.#spec
    const texts = series.map(({ valueOf }) => sample && valueOf(sample) !== undefined ? format(valueOf(sample)) : '–')
    texts.forEach((text, at) => { this.#values[at].textContent = text })
    const moment = isLatest ? '' : sample ? new Date(sample.at).toLocaleTimeString('en-GB') : 'no values'
    this.#moment.textContent = moment
    this.#cursor.setAttribute('d', isLatest ? '' : `M${step + 0.5} 0V${HEIGHT}`)
    if (document.activeElement !== this.#slider || isLatest) this.#slider.value = isLatest ? STEPS - 1 : step
    this.#slider.setAttribute('aria-valuetext', `${moment || 'latest'}: ${series.map(({ name }, at) => `${name} ${texts[at]}`).join(', ')}`)
  }
}

/** The short form of a name, if it has one; the rest is for screen readers. */
function labelOf ({ name, short = name }) {
  return [short, el('span', { class: 'hidden' }, name.slice(short.length))]
}

function stepAt (share) {
  return Math.max(0, Math.min(STEPS - 1, Math.floor(share * STEPS)))
}

/** A line through the values; it is interrupted where there is none. */
function pathOf (values, max) {
  let isDrawing = false
  const parts = values.map((value, step) => {
    if (value === undefined) {
      isDrawing = false
      return ''
    }
    const point = `${step + 0.5} ${Math.round((1 - value / max) * HEIGHT * 10) / 10}`
    const part = isDrawing ? `L${point}` : `M${point}h.01` // a value without neighbors is a dot
    isDrawing = true
    return part
  })
  return parts.join('')
}

function svg (tag, attributes) {
  const element = document.createElementNS(NAMESPACE, tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
  return element
}
