import { $ } from './element.js'

const KEPT = 'fastify-devices token'
/** The feed is considered dead after this silence; more than two keep-alive intervals. */
const SILENCE = 40_000
/** Characters of a message that the page shows. */
const MOST_SHOWN = 1_000

/** The gateway, over REST and the feed. Requests wait for a token if the gateway requires one. */
class Gateway {
  #asking

  get token () {
    return sessionStorage.getItem(KEPT) ?? undefined
  }

  forget () {
    sessionStorage.removeItem(KEPT)
  }

  /** Never rejects; status 0 without an answer. */
  async request (method, path, { body, type } = {}) {
    const started = performance.now()
    try {
      const response = await this.#fetch(path, { method, body, ...(type && { headers: { 'content-type': type } }) })
      const answer = { status: response.status, ok: response.ok, body: await bodyOf(response) }
      return { ...answer, took: Math.round(performance.now() - started) }
    } catch {
      return { status: 0, ok: false, body: { code: 'UNREACHABLE', message: 'The gateway does not answer' }, took: Math.round(performance.now() - started) }
    }
  }

  /** The events of the feed, after one that it has opened. Ends with the connection. */
  async * events (opened) {
    const silence = new AbortController()
    let timer
    const heard = () => {
      clearTimeout(timer)
      timer = setTimeout(() => silence.abort(), SILENCE)
    }
    try {
      const response = await this.#fetch('events', { signal: silence.signal })
      if (!response.ok) throw new Error((await response.json()).message)
      opened().catch(() => silence.abort())
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
      let text = ''
      for (;;) {
        heard()
        const { done, value } = await reader.read()
        if (done) return
        const blocks = (text + value).split('\n\n')
        text = blocks.pop()
        for (const event of blocks.flatMap(eventIn)) {
          if (event.type === 'gap') return // the next connection fetches the list of devices
          yield shown(event)
        }
      }
    } finally {
      clearTimeout(timer)
      silence.abort()
    }
  }

  async #fetch (path, { headers, ...options }) {
    for (;;) {
      const { token } = this
      const response = await fetch(path, { ...options, headers: { ...headers, ...(token && { authorization: `Bearer ${token}` }) } })
      if (!await wantsToken(response)) return response
      if (token === this.token) await this.#ask(token !== undefined)
    }
  }

  /** Asks for the token, once for several requests. */
  async #ask (wasWrong) {
    this.#asking ??= new Promise(resolve => {
      const [dialog, input] = [$('token-dialog'), $('token')]
      input.value = ''
      $('token-wrong').hidden = !wasWrong
      dialog.oncancel = event => event.preventDefault()
      dialog.onclose = () => {
        this.#asking = undefined
        // a token that a header cannot hold is wrong
        sessionStorage.setItem(KEPT, input.value.trim().replace(/[^\x21-\x7e]/g, '?'))
        resolve()
      }
      dialog.showModal()
    })
    await this.#asking
  }
}

/** The event of a block of server-sent events; none in a comment. */
function eventIn (block) {
  const line = block.split('\n').find(line => line.startsWith('data: '))
  return line === undefined ? [] : [JSON.parse(line.slice(6))]
}

/** What the page shows of an event. */
function shown ({ type, at, deviceId, generation, data }) {
  const facts = type === 'message' ? { data: preview(data) } : data
  return { kind: type, at, deviceId, generation, id: data.letterId, ...facts }
}

/** The data of a message as a short text. */
function preview ({ message, base64 }) {
  if (base64 !== undefined) return `${atob(base64).length} bytes`
  const text = JSON.stringify(message)
  return text.length > MOST_SHOWN ? `${text.slice(0, MOST_SHOWN)}…` : text
}

async function wantsToken (response) {
  if (response.status === 401) return true
  return response.status === 403 && (await response.clone().json()).code === 'FORBIDDEN'
}

async function bodyOf (response) {
  const type = response.headers.get('content-type') ?? ''
  if (type.startsWith('application/json')) return await response.json()
  return type.startsWith('application/octet-stream') ? new Uint8Array(await response.arrayBuffer()) : await response.text()
}

export const gateway = new Gateway()
