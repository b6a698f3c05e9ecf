import { $, clipped, el, readable } from './element.js'
import { gateway } from './gateway.js'
import { time } from './time.js'

const MAX_ANSWERS = 30
const MAX_SHOWN_CHARACTERS = 4_000

/** Requests, newest first, with their answers and the status of their letters. */
export class Answers {
  /** Queued letters by id: `{ to, row }`. */
  #queued = new Map()

  async send ({ to, method, path, body, type }) {
    const row = this.#row(to, method, body)
    const { status, ok, body: answer, took } = await gateway.request('POST', path, { body, type })
    const result = ok ? method === undefined ? answer.status ?? `sent to ${answer.sent} ${answer.sent === 1 ? 'device' : 'devices'}` : 'answered' : answer.code
    row.badge.textContent = status || '!'
    row.badge.dataset.outcome = ok ? status === 202 ? 'queued' : 'ok' : 'failed'
    row.outcome.textContent = result
    row.took.textContent = ` in ${took} ms`
    if (!ok || method !== undefined) row.element.append(el('pre', { tabindex: '0', role: 'group', 'aria-label': 'Answer' }, clipped(ok ? pretty(answer) : explained(answer), MAX_SHOWN_CHARACTERS)))
    this.#announce(to, `${status} ${result}`)
    if (answer?.status !== 'queued') return
    this.#queued.set(answer.id, { to, row })
    await this.#check(answer.id)
  }

  /** Shows how a letter has ended. */
  ended ({ type, data: { letterId } }) {
    const queued = this.#queued.get(letterId)
    if (!queued) return
    this.#queued.delete(letterId)
    const { to, row } = queued
    row.outcome.textContent = `queued → ${type}`
    row.badge.dataset.outcome = type === 'delivered' ? 'ok' : 'failed'
    this.#announce(to, type)
  }

  /** Fetches the receipts of letters that may have ended while the page was not connected. */
  check () {
    for (const id of this.#queued.keys()) void this.#check(id)
  }

  async #check (id) {
    const { to } = this.#queued.get(id)
    const { ok, body } = await gateway.request('GET', `devices/${encodeURIComponent(to)}/messages/${encodeURIComponent(id)}`)
    if (ok && body.status !== 'queued') this.ended({ type: body.status, data: { letterId: id } })
  }

  #row (to, method, body = '') {
    const [badge, outcome, took] = [el('span', { class: 'badge' }, '…'), el('strong', {}, 'sending'), el('span')]
    const element = el('li', {},
      el('div', { class: 'line' }, badge, el('span', {}, outcome, ' ', el('span', { class: 'muted' }, ...about(to, method), took)), time(Date.now())),
      body === '' ? undefined : el('p', { class: 'sent' }, clipped(body, MAX_SHOWN_CHARACTERS)))
    $('unanswered').hidden = true
    $('answers').prepend(element)
    while ($('answers').childElementCount > MAX_ANSWERS) $('answers').lastElementChild.remove()
    return { element, badge, outcome, took }
  }

  #announce (to = 'all devices', text) {
    $('announcement').textContent = `${to}: ${text}`
  }
}

/** The recipient and the method. */
function about (to, method) {
  if (to === undefined) return ['to all that listen']
  const id = el('span', { class: 'id' }, to)
  return method === undefined ? ['to ', id] : [el('span', { class: 'id' }, method), ' of ', id]
}

/** The body on one line, if it fits. */
function pretty (answer) {
  const line = readable(answer)
  return line.length > 60 && typeof answer === 'object' && !(answer instanceof Uint8Array) ? JSON.stringify(answer, null, 2) : line
}

/** The reason given by the gateway, and the error of the device. */
function explained ({ message, device }) {
  return device === undefined ? message : `${message}: ${pretty(device)}`
}
