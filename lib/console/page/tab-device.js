import { connect } from '../sdk/client/index.js'
import { Failure } from '../sdk/protocol/errors.js'
import { $, clipped, el, readable, showText } from './element.js'
import { gateway } from './gateway.js'
import { time } from './time.js'

const MAX_RECEIVED = 30
const MAX_QUESTIONS = 5
const MAX_SHOWN_CHARACTERS = 1_000

/** A device in this page, made with the SDK, and its card. */
export class TabDevice {
  #card
  #device

  constructor (id, closed) {
    this.#card = $('tab-device').content.firstElementChild.cloneNode(true)
    this.#card.setAttribute('aria-label', id)
    this.#part('.id').textContent = id
    this.#device = connect(gateway.socketUrl, { deviceId: id, token: () => gateway.token })
      .on('status', status => this.#show(status))
      .on('error', error => this.#showError(error))
      .on('message', message => this.#receive(message))
      .handle('echo', (params = null) => params)
      .handle('ask', (params, { signal }) => this.#ask(params, signal))
    this.#show(this.#device.status)
    this.#part('.close').addEventListener('click', () => {
      this.#device.close()
      this.#card.remove()
      closed()
    })
    this.#on('say', 'text', text => this.#say(parsed(text)))
    this.#on('subscribe', 'filter', filter => this.#subscribe(filter))
    $('tab-devices').prepend(this.#card)
  }

  focus () {
    this.#part('[name=text]').focus()
  }

  #part (selector) {
    return this.#card.querySelector(selector)
  }

  /** Submits a form of the card, then clears it. */
  #on (name, field, act) {
    this.#part(`[data-do=${name}]`).addEventListener('submit', async event => {
      event.preventDefault()
      const input = event.target.elements[field]
      const { value } = input
      if (value === '') return
      showText(this.#part('.wrong'))
      try {
        await act(value)
        if (input.value === value) input.value = ''
      } catch (error) {
        this.#showError(error)
      }
    })
  }

  async #say (data) {
    try {
      await this.#device.call('message', { data })
    } catch (error) {
      throw error.reason === 'unknown-method' ? new Error('The application does not listen to messages: app.devices.on(\'message\', ...)') : error
    }
  }

  #show ({ state, code, reason, retryIn }) {
    const presence = this.#part('.presence')
    presence.dataset.state = state === 'connected' ? 'on' : 'off'
    const why = code === undefined ? '' : `: ${code} ${reason}`.trimEnd()
    presence.textContent = retryIn === undefined ? state + why : `again in ${Math.ceil(retryIn / 1_000)} s${why}`
  }

  #showError (error) {
    showText(this.#part('.wrong'), error.message)
  }

  #receive ({ data, topic }) {
    const list = this.#part('.received')
    list.prepend(el('li', {},
      topic === undefined ? undefined : el('code', { class: 'topic' }, topic), el('span', { class: 'data' }, clipped(readable(data), MAX_SHOWN_CHARACTERS)), time(Date.now())))
    while (list.childElementCount > MAX_RECEIVED) list.lastElementChild.remove()
  }

  /** Keeps the topic once the server has accepted the subscription. */
  async #subscribe (filter) {
    const chips = this.#part('.chips')
    if ([...chips.children].some(({ dataset }) => dataset.filter === filter)) return
    await this.#device.call('subscribe', { topics: [filter] })
    // its publications are shown with the other messages
    const end = this.#device.subscribe(filter, () => {})
    const chip = el('li', { 'data-filter': filter }, el('code', {}, filter), el('button', {
      type: 'button',
      'aria-label': `Leave ${filter}`,
      click: () => {
        end()
        chip.remove()
      }
    }, '×'))
    chips.append(chip)
  }

  /** Resolves with the answer that the user of the page gives. */
  #ask (params, signal) {
    const place = this.#part('.questions')
    if (place.childElementCount >= MAX_QUESTIONS) throw new Failure('busy')
    return new Promise(resolve => {
      const choice = yes => el('button', { type: 'button', class: yes ? 'primary' : undefined, click: () => settle({ yes }) }, yes ? 'Yes' : 'No')
      const question = el('div', { class: 'question', role: 'alert' }, el('p', {}, clipped(readable(params?.question ?? 'Yes or no?'), MAX_SHOWN_CHARACTERS)), choice(true), choice(false))
      const settle = answer => {
        question.remove()
        resolve(answer)
      }
      signal.addEventListener('abort', () => settle())
      place.append(question)
    })
  }
}

/** The parsed JSON, or else the text. */
function parsed (text) {
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}
