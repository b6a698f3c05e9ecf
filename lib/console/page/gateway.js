import { EventStreamParser } from './event-stream.js'
import { signIn } from './dialogs.js'

const TOKEN_KEY = 'fastify-devices token'
/** The stream is considered dead after this silence; more than two keep-alive intervals. */
const MAX_SILENCE_MS = 40_000
const { rest, socket } = document.documentElement.dataset

/** The user closed the dialog that asks for the token. */
export class NotSignedIn extends Error {}

/** The server, over REST and its stream of events. Requests wait for a token if the server requires one. */
class Gateway {
  /** The server has accepted the token: a 403 is about what was asked, not about who asks. */
  #isAccepted = false
  #isDeclined = false
  #asking

  get token () {
    return sessionStorage.getItem(TOKEN_KEY) ?? undefined
  }

  forget () {
    sessionStorage.removeItem(TOKEN_KEY)
  }

  /** Asks for the token again after the user has declined. */
  retry () {
    this.#isDeclined = false
  }

  /** The absolute address of a REST route. */
  urlOf (path) {
    return new URL(rest + path, document.baseURI).href
  }

  /** Where devices connect. */
  get socketUrl () {
    return new URL(socket, document.baseURI).href
  }

  /** A request to a REST route. Never rejects; status 0 without an answer. */
  async request (method, path, { body, type } = {}) {
    return await this.#answer(rest + path, { method, body, ...(type && { headers: { 'content-type': type } }) })
  }

  /** The samples of the charts after a moment. */
  async samples (after) {
    return await this.#answer(`samples?after=${after}`, {})
  }

  /** The events after `lastId`, as `{ id, type, data }`; calls back once the stream is open. Ends with the connection. */
  async * events (lastId, onOpen) {
    const silence = new AbortController()
    let timer
    const heard = () => {
      clearTimeout(timer)
      timer = setTimeout(() => silence.abort(), MAX_SILENCE_MS)
    }
    try {
      const response = await this.#fetch(`${rest}events`, { signal: silence.signal, ...(lastId && { headers: { 'last-event-id': lastId } }) })
      if (!response.ok) throw new Error(`GET /events: ${(await bodyOf(response)).message ?? `the server answers ${response.status}`}`)
      onOpen().catch(error => silence.abort(error))
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
      const parser = new EventStreamParser()
      for (;;) {
        heard()
        const { done, value } = await reader.read()
        if (done) return
        yield * parser.push(value)
      }
    } finally {
      clearTimeout(timer)
      silence.abort()
    }
  }

  async #answer (url, options) {
    const started = performance.now()
    const took = () => Math.round(performance.now() - started)
    try {
      const response = await this.#fetch(url, options)
      return { status: response.status, ok: response.ok, body: await bodyOf(response), took: took() }
    } catch (error) {
      const body = error instanceof NotSignedIn ? { code: 'UNAUTHENTICATED', message: error.message } : { code: 'UNREACHABLE', message: 'The server does not answer. Try again once the status above is "Live".' }
      return { status: 0, ok: false, body, took: took() }
    }
  }

  async #fetch (url, { headers, ...options }) {
    for (;;) {
      if (this.#isDeclined) throw new NotSignedIn('The server requires a token. Choose "Enter a token" above.')
      const { token } = this
      const response = await fetch(url, { ...options, headers: { ...headers, ...(token && { authorization: `Bearer ${token}` }) } })
      if (response.ok) this.#isAccepted = true
      if (!await this.#wantsToken(response)) return response
      if (token === this.token) await this.#ask(token !== undefined)
    }
  }

  async #wantsToken (response) {
    if (response.status === 401) return true
    return response.status === 403 && !this.#isAccepted && (await bodyOf(response.clone())).code === 'FORBIDDEN'
  }

  /** Asks for the token, once for several requests. */
  async #ask (wasRefused) {
    this.#asking ??= signIn(wasRefused)
    const token = await this.#asking
    this.#asking = undefined
    this.#isAccepted = false
    if (token === undefined) this.#isDeclined = true
    else sessionStorage.setItem(TOKEN_KEY, token)
  }
}

async function bodyOf (response) {
  const type = response.headers.get('content-type') ?? ''
  if (type.startsWith('application/json')) return await response.json()
  return type.startsWith('application/octet-stream') ? new Uint8Array(await response.arrayBuffer()) : await response.text()
}

export const gateway = new Gateway()
