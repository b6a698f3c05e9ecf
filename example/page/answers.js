import { $, el, readable } from './element.js'
import { gateway } from './gateway.js'
import { time } from './time.js'

const MOST = 30
const MOST_SHOWN = 4_000

/** Requests, newest first, with their answers and the status of their letters. */
export class Answers {
  /** Queued letters by id: `{ to, show }`. */
  #queued = new Map()

  async send ({ to, what, path, body, type }) {
    const row = this.#row(to, what, body)
    const { status, ok, body: answer, took } = await gateway.request('POST', path, { body, type })
    const said = ok ? what === undefined ? answer.status ?? `sent to ${answer.sent} ${answer.sent === 1 ? 'device' : 'devices'}` : 'answered' : answer.code
    row.badge.textContent = status || '!'
    row.badge.dataset.mood = ok ? status === 202 ? 'waits' : 'good' : 'bad'
    row.became.textContent = said
    row.took.textContent = ` in ${took} ms`
    if (!ok || what !== undefined) row.element.append(el('pre', { tabindex: '0', role: 'group', 'aria-label': 'Answer' }, clipped(ok ? pretty(answer) : explained(answer))))
    this.#say(to, `${status} ${said}`)
    if (answer?.status !== 'queued') return
    this.#queued.set(answer.id, { to, row })
    await this.#check(answer.id)
  }

  /** Shows the end of a letter. */
  became ({ kind, id }) {
    const queued = this.#queued.get(id)
    if (!queued) return
    this.#queued.delete(id)
    const { to, row } = queued
    row.became.textContent = `queued → ${kind}`
    row.badge.dataset.mood = kind === 'delivered' ? 'good' : 'bad'
    this.#say(to, kind)
  }

  /** Fetches the receipts of letters that may have ended while the feed was down. */
  check () {
    for (const id of this.#queued.keys()) void this.#check(id)
  }

  async #check (id) {
    const { to } = this.#queued.get(id)
    const { ok, body } = await gateway.request('GET', `devices/${encodeURIComponent(to)}/messages/${encodeURIComponent(id)}`)
    if (ok && body.status !== 'queued') this.became({ kind: body.status, id })
  }

  #row (to, what, body = '') {
    const [badge, became, took] = [el('span', { class: 'badge' }, '…'), el('strong', {}, 'on its way'), el('span')]
    const element = el('li', {},
      el('div', { class: 'line' }, badge, el('span', {}, became, ' ', el('span', { class: 'muted' }, ...about(to, what), took)), time(Date.now())),
      body === '' ? undefined : el('p', { class: 'sent' }, clipped(body)))
    $('unanswered').hidden = true
    $('answers').prepend(element)
    while ($('answers').childElementCount > MOST) $('answers').lastElementChild.remove()
    return { element, badge, became, took }
  }

  #say (to = 'everyone', text) {
    $('announcement').textContent = `${to}: ${text}`
  }
}

/** The recipient and the method. */
function about (to, what) {
  if (to === undefined) return ['to everyone who listens']
  const id = el('span', { class: 'id' }, to)
  return what === undefined ? ['to ', id] : [el('span', { class: 'id' }, what), ' of ', id]
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

function clipped (text) {
  return text.length > MOST_SHOWN ? `${text.slice(0, MOST_SHOWN)}…` : text
}
