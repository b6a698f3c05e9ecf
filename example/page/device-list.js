import { $, arrange, drawing, el, tell } from './element.js'
import { gateway } from './gateway.js'
import { time } from './time.js'

/** Maximum number of rows drawn, maximum number of devices kept, and the size of a page of `GET /devices`. */
const MOST_ROWS = 200
const MOST_KNOWN = 20_000
const PAGE = 1_000

const isId = text => /^[A-Za-z0-9._:@+=~-]{1,128}$/.test(text)

/** The connected devices, newest first, and those that have disconnected. */
export class DeviceList {
  /** By id, in the order of connection: `{ id, generation, since, left? }`. */
  #devices = new Map()
  #connected = 0
  #rows = new Map()
  #chosen
  #choose
  #loaded = false
  #everyone

  constructor (choose) {
    this.#choose = choose
    this.#everyone = this.#row(undefined, 'Everyone')
    $('filter').addEventListener('input', this.draw)
    $('roster').addEventListener('keydown', event => this.#walk(event))
  }

  get connected () {
    return this.#connected.toLocaleString('en') + (this.#connected >= MOST_KNOWN ? '+' : '')
  }

  isHere (id) {
    const device = this.#devices.get(id)
    return device !== undefined && device.left === undefined
  }

  choose (id) {
    this.#chosen = id
    this.#choose(id)
    this.draw()
  }

  #clicked (id) {
    this.choose(id)
    if (matchMedia('(width < 760px)').matches) $('recipient').scrollIntoView()
  }

  /** Fetches the list of connected devices; a device that is not in it has disconnected. */
  async load () {
    const present = []
    let cursor
    do {
      const { ok, body } = await gateway.request('GET', `devices?limit=${PAGE}${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ''}`)
      if (!ok) throw new Error(body.message)
      present.push(...body.devices)
      cursor = body.cursor
    } while (cursor && present.length < MOST_KNOWN)
    const here = new Set(present.map(({ deviceId }) => deviceId))
    for (const [id, device] of this.#devices) if (!here.has(id)) this.left({ deviceId: id, generation: device.generation, at: Date.now() })
    for (const device of present.toSorted((a, b) => a.since - b.since)) this.arrived(device)
    this.#loaded = true
    this.draw()
  }

  arrived ({ deviceId: id, generation, since }) {
    const known = this.#devices.get(id)
    if (known && known.generation > generation) return
    if (!this.isHere(id)) this.#connected++
    if (known?.generation !== generation) this.#devices.delete(id)
    this.#devices.set(id, { id, generation, since })
    if (this.#devices.size > MOST_KNOWN) this.#drop()
    this.draw()
  }

  left ({ deviceId: id, generation, at }) {
    const known = this.#devices.get(id)
    if (known?.generation !== generation || known.left) return
    known.left = at
    this.#connected--
    this.draw()
  }

  draw = drawing(() => {
    const filter = $('filter').value.trim()
    const wanted = filter.toLowerCase()
    const found = [...this.#devices.values()].toReversed().filter(({ id }) => id.toLowerCase().includes(wanted))
    const here = found.filter(({ left }) => !left)
    const shown = [...here, ...found.filter(({ left }) => left)].slice(0, MOST_ROWS)
    // a row for an unknown device, which may get letters
    const strangers = [filter, this.#chosen].filter(id => id && isId(id) && !this.#devices.has(id))
    const rows = [...new Set(strangers)].map(id => this.#rowOf({ id })).concat(shown.map(device => this.#rowOf(device)))
    for (const [id, row] of this.#rows) if (!rows.includes(row)) this.#rows.delete(id)
    this.#mark(this.#everyone, this.#chosen === undefined, this.#connected > 0 ? 'on' : 'off', `${this.connected} connected`)
    arrange($('roster'), [this.#everyone, ...rows])
    tell($('more'), found.length > shown.length ? `and ${(found.length - shown.length).toLocaleString('en')} more; filter to find them` : '')
    $('count').textContent = filter ? `${found.length.toLocaleString('en')} found` : ''
    $('nobody').hidden = !this.#loaded || this.#connected > 0 || filter !== ''
  })

  #rowOf ({ id, since, left }) {
    const row = this.#rows.get(id) ?? this.#row(id, id)
    this.#rows.set(id, row)
    const moment = left ?? since
    if (row.moment !== moment) row.note = moment && time(moment)
    row.moment = moment
    this.#mark(row, id === this.#chosen, left || !since ? 'off' : 'on', row.note ?? 'not seen')
    return row
  }

  #row (id, name) {
    const button = el('button', { type: 'button', click: () => this.#clicked(id) },
      el('span', { class: 'dot', 'aria-hidden': 'true' }), el('span', { class: 'name' }, name), el('span', { class: 'hidden' }), el('span', { class: 'note' }))
    return el('li', { 'data-id': id }, button)
  }

  #mark (row, isChosen, state, note) {
    const [button] = row.children
    const [, , word, place] = button.children
    button.setAttribute('aria-current', isChosen)
    row.dataset.state = state
    word.textContent = state === 'off' && row.dataset.id ? ', away' : ''
    if (place.firstChild !== note && place.textContent !== note) place.replaceChildren(note)
  }

  /** Removes the devices that have been away longest, then the oldest. */
  #drop () {
    const oldest = this.#devices.values().find(({ left }) => left) ?? this.#devices.values().next().value
    if (!oldest.left) this.#connected--
    this.#devices.delete(oldest.id)
  }

  #walk (event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key]
    if (!step) return
    event.preventDefault()
    const buttons = [...$('roster').querySelectorAll('button')]
    buttons[buttons.indexOf(document.activeElement) + step]?.focus()
  }
}
