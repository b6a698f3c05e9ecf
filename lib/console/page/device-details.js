import { closeCodes } from '../sdk/protocol/errors.js'
import { confirms } from './dialogs.js'
import { $, setChildren, batched, el, showText } from './element.js'
import { gateway } from './gateway.js'
import { time } from './time.js'

const MAX_LETTERS = 20
/** Details without events of their own are refreshed at this interval. */
const REFRESH_INTERVAL_MS = 5_000

/** The meaning of a close code. */
export function meaningOf (code) {
  return Object.values(closeCodes).find(entry => entry.code === code)?.message ?? ''
}

/** The details of the chosen device, and its queued letters. */
export class DeviceDetails {
  #id
  /** Why the last action on the device failed. */
  #refusal = ''
  #openHere

  constructor (openHere) {
    this.#openHere = openHere
    $('open-here').addEventListener('click', () => this.#openHere(this.#id))
    $('disconnect').addEventListener('click', () => this.#disconnect())
    $('purge').addEventListener('click', () => this.#purge())
    setInterval(() => { if (!document.hidden) this.look() }, REFRESH_INTERVAL_MS)
  }

  get id () {
    return this.#id
  }

  get #path () {
    return `devices/${encodeURIComponent(this.#id)}`
  }

  choose (id) {
    this.#id = id
    this.#refusal = ''
    $('recipient-title').textContent = id ?? 'All devices'
    $('recipient-title').className = id === undefined ? '' : 'id'
    $('presence').textContent = ''
    showText($('details-wrong'))
    showText($('summary'), id === undefined ? 'A message goes to every connected device, or to those that listen to a topic.' : '')
    for (const name of ['facts', 'letters', 'open-here', 'disconnect']) $(name).hidden = true
    this.look()
  }

  async #disconnect () {
    const id = this.#id
    const isSure = await confirms({ title: `Disconnect ${id}?`, text: 'Its connection ends with close code 4511. A device that follows the protocol does not reconnect by itself.', yes: 'Disconnect' })
    if (isSure) await this.#delete(`devices/${encodeURIComponent(id)}`)
  }

  async #purge () {
    const path = `${this.#path}/messages`
    if (await confirms({ title: `Cancel all letters for ${this.#id}?`, text: 'The device never gets them.', yes: 'Cancel them' })) await this.#delete(path)
  }

  async #delete (path) {
    const { ok, body } = await gateway.request('DELETE', path)
    this.#refusal = ok ? '' : body.message
    this.look()
  }

  /** Refreshes soon, once for several events. */
  look = batched(() => this.#look())

  async #look () {
    const id = this.#id
    if (id === undefined) return
    const { ok, status, body } = await gateway.request('GET', this.#path)
    const letters = ok && body.waiting > 0 ? await gateway.request('GET', `${this.#path}/messages?limit=${MAX_LETTERS}`) : undefined
    if (id !== this.#id) return
    showText($('details-wrong'), !ok && status !== 404 ? body.message : this.#refusal)
    if (!ok && status !== 404) return // what is shown is the last that is known
    const details = ok ? body : { connected: false }
    $('presence').textContent = details.connected ? 'connected' : 'away'
    $('presence').dataset.state = details.connected ? 'on' : 'off'
    $('open-here').hidden = details.connected
    $('disconnect').hidden = !details.connected
    showText($('summary'), !ok ? 'Not connected, and no letter waits for it. A message can be kept for it as a letter.' : '')
    this.#showFacts(ok ? details : {})
    this.#showLetters(letters?.ok ? letters.body.messages : [], details.waiting)
  }

  #showFacts ({ connected, since, address, protocol, node, generation, topics, inFlight, waiting, lastDisconnect }) {
    const disconnect = lastDisconnect && [String(lastDisconnect.code), lastDisconnect.reason || meaningOf(lastDisconnect.code), time(lastDisconnect.at)]
    const facts = {
      'Connected since': connected && [time(since)],
      Address: address && [address],
      Protocol: protocol && [protocol],
      Node: node && [node],
      Generation: generation && [String(generation)],
      'Calls in flight': inFlight !== undefined && [String(inFlight)],
      'Letters waiting': waiting !== undefined && [String(waiting)],
      Topics: topics && (topics.length > 0 ? topics.map(topic => el('code', {}, topic)) : ['none']),
      'Last disconnect': disconnect || (waiting !== undefined && ['none'])
    }
    const shown = Object.entries(facts).filter(([, values]) => values)
    $('facts').hidden = shown.length === 0
    $('facts').replaceChildren(...shown.map(([name, values]) =>
      el('div', { class: name === 'Topics' || name === 'Last disconnect' ? 'wide' : undefined }, el('dt', {}, name), el('dd', {}, ...values.flatMap(value => [value, ' '])))))
  }

  #showLetters (letters, waiting) {
    $('letters').hidden = letters.length === 0
    const known = new Map([...$('letters-list').children].map(row => [row.dataset.id, row]))
    setChildren($('letters-list'), letters.map(letter => known.get(letter.id) ?? this.#letter(letter)))
    showText($('letters-more'), waiting > letters.length && letters.length > 0 ? `and ${waiting - letters.length} more` : '')
  }

  #letter ({ id, size, expiresAt, collapse }) {
    const path = `${this.#path}/messages/${encodeURIComponent(id)}`
    return el('li', { 'data-id': id },
      el('code', { class: 'id' }, id),
      el('span', { class: 'muted' }, `${size} bytes, expires `, time(expiresAt), collapse === undefined ? undefined : `, collapses ${collapse}`),
      el('button', { type: 'button', class: 'quiet', click: () => this.#delete(path), 'aria-label': `Cancel ${id}` }, 'Cancel'))
  }
}
