import { $, drawing, el } from './element.js'
import { meaningOf } from './device-details.js'
import { time } from './time.js'

const MOST = 200

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
    if (this.#news.length > MOST) this.#news.shift()
    this.#draw()
  }

  choose (id) {
    this.#only = id
    this.#filter()
  }

  #draw = drawing(() => {
    const rows = this.#news.splice(0).toReversed().map(event => this.#row(event))
    $('quiet').hidden = true
    $('entries').prepend(...rows)
    while ($('entries').childElementCount > MOST) $('entries').lastElementChild.remove()
  })

  #row ({ kind, at, deviceId, ...facts }) {
    const row = el('li', { 'data-kind': kind, 'data-of': deviceId },
      el('span', { class: 'kind' }, kind), el('span', { class: 'id' }, deviceId), time(at), el('span', { class: 'detail' }, detailOf(kind, facts)))
    row.hidden = this.#isHidden(row)
    return row
  }

  #isHidden (row) {
    return $('only').checked && this.#only !== undefined && row.dataset.of !== this.#only
  }

  #filter () {
    for (const row of $('entries').children) row.hidden = this.#isHidden(row)
  }
}

function detailOf (kind, { id, address, code, reason, data }) {
  if (kind === 'connected') return address ? `from ${address}` : ''
  if (kind === 'disconnected') return `${code} ${reason || meaningOf(code)}`
  return kind === 'message' ? data : `letter ${id}`
}
