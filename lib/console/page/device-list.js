import { $, setChildren, batched, el, showText } from './element.js'
import { gateway } from './gateway.js'
import { time } from './time.js'

const MAX_ROWS = 200
const MAX_KNOWN = 20_000
const PAGE_SIZE = 1_000
/** The results of a search by the server are refreshed at this interval, because topics change without an event. */
const SEARCH_INTERVAL_MS = 5_000

const isId = text => /^[A-Za-z0-9._:@+=~-]{1,128}$/.test(text)

/** The connected devices, newest first, and those that have disconnected. */
export class DeviceList {
  /** By id, in the order of connection: `{ id, generation, since, left?, leftHere? }`; `left` by the clock of the server, `leftHere` by that of the page. */
  #devices = new Map()
  #connected = 0
  #rows = new Map()
  #chosen
  #choose
  #isLoaded = false
  #everyone
  /** What the server has found, as `{ ids, hasMore }`; undefined unless the search is one that the server answers. */
  #found

  constructor (choose) {
    this.#choose = choose
    this.#everyone = this.#row(undefined, 'All devices')
    for (const id of ['filter', 'match']) {
      $(id).addEventListener('input', () => {
        this.draw()
        this.#search()
      })
    }
    setInterval(() => { if (!document.hidden && this.#found) this.#search() }, SEARCH_INTERVAL_MS)
    $('roster').addEventListener('keydown', event => this.#moveFocus(event))
  }

  get connected () {
    return this.#connected.toLocaleString('en') + (this.#connected >= MAX_KNOWN ? '+' : '')
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
    const startedAt = performance.now()
    const before = [...this.#devices.values()].filter(({ left }) => !left)
    const present = []
    let cursor
    do {
      const { ok, body } = await gateway.request('GET', `devices?limit=${PAGE_SIZE}${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ''}`)
      if (!ok) throw new Error(body.message)
      present.push(...body.devices)
      cursor = body.cursor
    } while (cursor && present.length < MAX_KNOWN)
    const here = new Set(present.map(({ deviceId }) => deviceId))
    if (!cursor) for (const { id, generation } of before) if (!here.has(id)) this.left({ deviceId: id, generation, at: Date.now() })
    for (const device of present.toSorted((a, b) => a.since - b.since)) this.arrived(device, startedAt)
    this.#isLoaded = true
    this.draw()
  }

  /** `seenAt` is when a list was requested that has the device: a disconnect after that counts. */
  arrived ({ deviceId: id, generation, since }, seenAt = 0) {
    const known = this.#devices.get(id)
    if (known?.generation > generation) return
    if (known?.generation === generation && !(known.leftHere < seenAt)) return
    if (!this.isHere(id)) this.#connected++
    if (known?.generation !== generation) this.#devices.delete(id)
    this.#devices.set(id, { id, generation, since })
    if (this.#devices.size > MAX_KNOWN) this.#forgetOldest()
    if (this.#found && seenAt === 0) this.#search()
    this.draw()
  }

  left ({ deviceId: id, generation, at }) {
    const known = this.#devices.get(id)
    if (known?.generation !== generation || known.left) return
    known.left = at
    known.leftHere = performance.now()
    this.#connected--
    if (this.#found) this.#search()
    this.draw()
  }

  draw = batched(() => {
    const text = $('filter').value.trim()
    const found = this.#matching(text)
    const here = found.filter(({ left }) => !left)
    const shown = [...here, ...found.filter(({ left }) => left)].slice(0, MAX_ROWS)
    // a row for an unknown device, which may get letters
    const unknownIds = [$('match').value === 'part' ? text : '', this.#chosen].filter(id => id && isId(id) && !this.#devices.has(id))
    const rows = [...new Set(unknownIds)].map(id => this.#rowOf({ id })).concat(shown.map(device => this.#rowOf(device)))
    for (const [id, row] of this.#rows) if (!rows.includes(row)) this.#rows.delete(id)
    this.#mark(this.#everyone, this.#chosen === undefined, this.#connected > 0 ? 'on' : 'off', `${this.connected} connected`)
    setChildren($('roster'), [this.#everyone, ...rows])
    showText($('more'), found.length > shown.length ? `and ${(found.length - shown.length).toLocaleString('en')} more; search to find them` : '')
    $('count').textContent = text ? `${found.length.toLocaleString('en')}${this.#found?.hasMore ? ' or more' : ''} found` : ''
    showText($('not-found'), text && found.length === 0 && $('filter-wrong').hidden ? `No device ${{ part: 'has this in its id', prefix: 'has an id that begins with this', topic: 'listens to this topic' }[$('match').value]}.` : '')
    const current = rows.find(({ dataset }) => dataset.id === this.#chosen) ?? this.#everyone
    for (const row of [this.#everyone, ...rows]) row.firstChild.tabIndex = row === current ? 0 : -1
    $('nobody').hidden = !this.#isLoaded || this.#connected > 0 || text !== ''
  })

  /** The devices that match the search, newest first. */
  #matching (text) {
    const devices = [...this.#devices.values()].toReversed()
    if (this.#found) return devices.filter(({ id }) => this.#found.ids.has(id))
    const wanted = text.toLowerCase()
    return devices.filter(({ id }) => id.toLowerCase().includes(wanted))
  }

  /** Asks the server about all devices, if it can answer the search. */
  #search = batched(async () => {
    const [match, text] = [$('match').value, $('filter').value.trim()]
    const askedAt = performance.now()
    const isAsked = match !== 'part' && text !== ''
    const { ok, body } = isAsked ? await gateway.request('GET', `devices?limit=${MAX_ROWS}&${match}=${encodeURIComponent(text)}`) : { ok: true }
    if (match !== $('match').value || text !== $('filter').value.trim()) return
    showText($('filter-wrong'), ok ? '' : body.message)
    const devices = ok && isAsked ? body.devices : []
    for (const device of devices) this.arrived(device, askedAt)
    this.#found = isAsked ? { ids: new Set(devices.map(({ deviceId }) => deviceId)), hasMore: body.cursor !== undefined } : undefined
    this.draw()
  }, 200)

  #rowOf ({ id, since, left }) {
    const row = this.#rows.get(id) ?? this.#row(id, id)
    this.#rows.set(id, row)
    const moment = left ?? since
    if (row.moment !== moment) row.note = moment && time(moment)
    row.moment = moment
    this.#mark(row, id === this.#chosen, left || !since ? 'off' : 'on', row.note ?? 'not connected')
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
    word.textContent = row.dataset.id ? state === 'on' ? ', connected' : ', away' : ''
    if (place.firstChild !== note && place.textContent !== note) place.replaceChildren(note)
  }

  /** Removes the devices that have been away longest, then the oldest. */
  #forgetOldest () {
    const oldest = this.#devices.values().find(({ left }) => left) ?? this.#devices.values().next().value
    if (!oldest.left) this.#connected--
    this.#devices.delete(oldest.id)
  }

  /** The list is one stop of the Tab key; arrows, Home and End move within it. */
  #moveFocus (event) {
    const buttons = [...$('roster').querySelectorAll('button')]
    const at = buttons.indexOf(document.activeElement)
    const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key]
    if (next === undefined) return
    event.preventDefault()
    buttons[next]?.focus()
  }
}
