import { $, showText } from './element.js'
import { gateway } from './gateway.js'

/** The form for requests: a message or a call, to one device or to all. */
export class Composer {
  #form = $('composer')
  #to
  #body = { message: '{"hello":"world"}', call: '{"hello":"device"}' }
  #kind = 'message'

  constructor (send) {
    this.#form.addEventListener('input', event => {
      if (event.target.name === 'body') this.#body[this.#kind] = this.#fields.body.value
      if (event.target.name === 'method' && event.target.value === 'ask') this.#suggest('{"question":"Open the door?"}')
      this.#draw()
    })
    this.#form.addEventListener('keydown', event => {
      if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) this.#form.requestSubmit()
    })
    this.#form.addEventListener('submit', event => {
      event.preventDefault()
      const wrong = this.#wrong()
      showText($('wrong'), wrong)
      if (!wrong) send(this.#request())
    })
  }

  /** The recipient; undefined for all devices. */
  choose (to) {
    this.#to = to
    $('kinds').hidden = to === undefined
    this.#draw()
  }

  get #fields () {
    return this.#form.elements
  }

  #suggest (body) {
    this.#body[this.#kind] = this.#fields.body.value = body
  }

  #draw () {
    const kind = this.#to === undefined ? 'message' : this.#fields.kind.value
    if (kind !== this.#kind) {
      this.#kind = kind
      this.#fields.body.value = this.#body[kind]
    }
    const shown = new Set([kind, this.#to === undefined ? 'everyone' : 'device'])
    for (const part of this.#form.querySelectorAll('[data-of]')) {
      part.hidden = !shown.has(part.dataset.of)
      if ('disabled' in part) part.disabled = part.hidden
    }
    $('body-label').textContent = kind === 'call' ? 'Params, an object or an array, or nothing' : 'Message'
    this.#form.querySelector('.primary').textContent = kind === 'call' ? 'Call' : this.#to === undefined ? 'Send to all' : 'Send'
    showText($('wrong'))
    $('curl').textContent = curl(this.#request())
  }

  /** Why it cannot be sent. */
  #wrong () {
    const { format, body, method, timeout } = this.#fields
    if (this.#kind === 'call' && !method.value) return 'Enter the name of a method.'
    if (this.#kind === 'call' && !timeout.checkValidity()) return `Timeout: ${timeout.validationMessage}`
    if (this.#kind === 'message' ? format.value === 'text' : body.value.trim() === '') return ''
    try {
      JSON.parse(body.value)
      return ''
    } catch (error) {
      return `This is not JSON (${error.message}). Correct it, or choose the format Text.`
    }
  }

  #request () {
    const { body, format, method, timeout, ttl, confirm, topic } = this.#fields
    const device = this.#to !== undefined && `devices/${encodeURIComponent(this.#to)}`
    const query = new URLSearchParams()
    if (this.#kind === 'call') {
      query.set('timeout', timeout.value)
      const params = body.value.trim() !== '' && { body: body.value, type: 'application/json' }
      return { to: this.#to, method: method.value, path: `${device}/calls/${encodeURIComponent(method.value)}?${query}`, ...params }
    }
    if (device && ttl.value) query.set('ttl', ttl.value)
    if (device && confirm.checked) query.set('confirm', 'true')
    if (!device && topic.value) query.set('topic', topic.value)
    const path = (device ? `${device}/messages` : 'broadcast') + (query.size > 0 ? `?${query}` : '')
    return { to: this.#to, path, body: body.value, type: format.value === 'text' ? 'text/plain' : 'application/json' }
  }
}

function curl ({ path, body, type }) {
  const token = gateway.token && '-H "authorization: Bearer $TOKEN"'
  const content = body !== undefined && `-H 'content-type: ${type}' -d ${quoted(body)}`
  return ['curl -X POST', quoted(gateway.urlOf(path)), token, content].filter(Boolean).join(' ')
}

/** Quotes a word for a shell. */
function quoted (text) {
  return `'${text.replaceAll("'", "'\\''")}'`
}
