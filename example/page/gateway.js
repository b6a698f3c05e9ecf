import { $ } from './element.js'

const KEPT = 'fastify-devices token'
/** Milliseconds without a sign of life of the feed, more than two of its beats. */
const SILENCE = 40_000

/** The server of this page, as REST and the feed show it. Where it wants a token, whoever asked waits until there is one. */
class Gateway {
  #asking

  get token () {
    return sessionStorage.getItem(KEPT) ?? undefined
  }

  forget () {
    sessionStorage.removeItem(KEPT)
  }

  /** Resolves whatever the answer is; status 0: there was none. */
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

  /** What happens from now on, and that it has begun. Ends when the line does. */
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
        for (const block of blocks) if (block.startsWith('data: ')) yield JSON.parse(block.slice(6))
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

  /** However many want a token, it is asked for once. */
  async #ask (wasWrong) {
    this.#asking ??= new Promise(resolve => {
      const [door, input] = [$('door'), $('token')]
      input.value = ''
      $('door-wrong').hidden = !wasWrong
      door.oncancel = event => event.preventDefault()
      door.onclose = () => {
        this.#asking = undefined
        // what no header can hold cannot be the token
        sessionStorage.setItem(KEPT, input.value.trim().replace(/[^\x21-\x7e]/g, '?'))
        resolve()
      }
      door.showModal()
    })
    await this.#asking
  }
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
