import { meaningOf } from './device-details.js'
import { $, clipped, batched, el, readable } from './element.js'
import { time } from './time.js'

const MAX_ENTRIES = 200
const MAX_SHOWN_CHARACTERS = 1_000

/** The log of events, newest first. */
export class Log {
  /** Entries that are not drawn yet, oldest first. */
  #news = []
  #only

  constructor () {
    $('only').addEventListener('change', () => this.#filter())
  }

  add (event) {
    this.#news.push(event)
    if (this.#news.length > MAX_ENTRIES) this.#news.shift()
    this.#draw()
  }

  choose (id) {
    this.#only = id
    this.#filter()
  }

  #draw = batched(() => {
    const rows = this.#news.splice(0).toReversed().map(event => this.#row(event))
    $('quiet').hidden = true
    $('entries').prepend(...rows)
    while ($('entries').childElementCount > MAX_ENTRIES) $('entries').lastElementChild.remove()
  })

  #row ({ type, at, deviceId, data }) {
    const row = el('li', { 'data-kind': type, 'data-of': deviceId },
      el('span', { class: 'kind' }, type), el('span', { class: 'id' }, deviceId ?? ''), time(at), el('span', { class: 'detail' }, detailOf(type, data)))
    row.hidden = this.#isHidden(row)
    return row
  }

  #isHidden (row) {
    return $('only').checked && this.#only !== undefined && row.dataset.of !== undefined && row.dataset.of !== this.#only
  }

  #filter () {
    for (const row of $('entries').children) row.hidden = this.#isHidden(row)
  }
}

function detailOf (type, data) {
  switch (type) {
    case 'connected': return data.address ? `from ${data.address}` : ''
    case 'disconnected': return `${data.code} ${data.reason || meaningOf(data.code)}`
    case 'message': return data.base64 === undefined ? clipped(readable(data.message), MAX_SHOWN_CHARACTERS) : `bytes, base64: ${clipped(data.base64, MAX_SHOWN_CHARACTERS)}`
    case 'gap': return `Events may be missing here: ${data.reason}`
    default: return `letter ${data.letterId}`
  }
}
