import { setTimeout as sleep } from 'node:timers/promises'
import type { Attempt } from './loss-windows.ts'
import { TOPIC, type Device } from './partition-device.ts'
import { NODES } from './partition-engine.ts'
import type { Site } from './partition-site.ts'

/** How a request ended: its status and code, or the name of the error where there was no answer. */
export interface Answer {
  outcome: string
  body: any
}

interface CallerRequest {
  kind: Kind
  node: string
  method?: string
  path: string
  body?: unknown
  key?: string
  /** The timeout of the request, in seconds. */
  timeout?: number
}

/** The state of the letters to one device. */
interface LetterState {
  /** When each letter was sent and acknowledged, by its number. */
  attempts: Attempt[]
  /** Letters acknowledged to their sender: number and message id. */
  acknowledged: Map<number, string>
  /** The letter that is sent until it is acknowledged. */
  pending: number | undefined
}

type Kind = keyof typeof documented

const LANES = 8
const INTERVAL_MS = 60
const TIMEOUT_S = 3
/** The excess that is allowed beyond the timeout, and the tolerance for the network and a busy machine. */
const [SLACK_MS, NOISE_MS] = [1_000, 250]
/** The documented limit of requests without a timeout: `callTimeout`. */
const DEFAULT_TIMEOUT_MS = 10_000
const FETCH_TIMEOUT_MS = 40_000
const RETRY_DELAY_MS = 100

const leaving = ['503 NODE_DRAINING', '503 Service Unavailable']
const elsewhere = ['503 BACKPLANE_DOWN', ...leaving]
const device = [...elsewhere, '404 DEVICE_OFFLINE', '502 DEVICE_DROPPED', '504 DEVICE_TIMEOUT', '429 RATE_EXCEEDED', '429 CALLS_EXCEEDED', '429 DEVICE_CONGESTED']

/** The outcomes that the README and docs/protocol.md name, as far as these requests can have them. */
const documented = {
  letter: ['202 queued', '200 delivered', ...elsewhere, '429 MAILBOX_FULL'],
  'letter with confirm': ['202 queued', '200 delivered', ...elsewhere, '429 MAILBOX_FULL'],
  send: ['200 sent', ...device],
  confirm: ['200 delivered', ...device],
  call: ['200', ...device],
  broadcast: ['200', ...elsewhere],
  list: ['200', ...elsewhere],
  receipt: ['200 queued', '200 delivered', '404 MESSAGE_UNKNOWN', ...elsewhere],
  describe: ['200', '404 DEVICE_OFFLINE', ...elsewhere, '504 DEVICE_TIMEOUT', '502 DEVICE_DROPPED']
}

/** REST callers that send to all devices over all nodes, and check that every answer is documented. */
export class Callers {
  readonly wrong: string[] = []
  /** Number of outcomes, by kind of request. */
  readonly outcomes: Record<string, Record<string, number>> = {}
  /** Milliseconds of the slowest answer of each kind, from nodes that ran without interruption. */
  readonly slowest: Record<string, number> = {}
  readonly posts: Map<Device, LetterState>
  /** Calls and messages that were acknowledged to their caller, with their device. */
  readonly done = new Map<string, Device>()
  readonly #site: Site
  readonly #devices: Device[]
  readonly #random: () => number
  #stopping = false
  #lanes: Promise<unknown> = Promise.resolve()
  #asked = 0

  constructor (site: Site, devices: Device[], random: () => number) {
    this.#site = site
    this.#devices = devices
    this.#random = random
    this.posts = new Map(devices.map(device => [device, { attempts: [], acknowledged: new Map(), pending: undefined }]))
  }

  start (): void {
    this.#lanes = Promise.all(Array.from({ length: LANES }, (_, lane) => this.#lane(lane)))
  }

  /** Stops the callers; resolves with the violations once every letter is acknowledged. */
  async stop (within: number): Promise<string[]> {
    this.#stopping = true
    await this.#lanes
    const until = performance.now() + within
    await Promise.all(this.#devices.map(async device => {
      while (this.posts.get(device)!.pending !== undefined && performance.now() < until) {
        await this.#letter(device, false)
        await sleep(RETRY_DELAY_MS)
      }
    }))
    const refused = this.#devices.filter(device => this.posts.get(device)!.pending !== undefined)
    return refused.length === 0 ? [] : [`no letter is accepted for ${refused.length} devices, as ${refused[0]!.id}, after ${within} ms`]
  }

  async ask ({ kind, node, method = 'POST', path, body, key, timeout }: CallerRequest): Promise<Answer> {
    const began = performance.now()
    const answer = await this.#fetch(this.#site.url(node) + path, method, body, key)
    const took = performance.now() - began
    const counts = this.outcomes[kind] ??= {}
    counts[answer.outcome] = (counts[answer.outcome] ?? 0) + 1
    if (this.#site.isDisturbed(node, began, performance.now())) return answer
    this.slowest[kind] = Math.max(this.slowest[kind] ?? 0, Math.round(took))
    const limit = timeout === undefined ? DEFAULT_TIMEOUT_MS : timeout * 1_000
    if (took > limit + SLACK_MS + NOISE_MS) this.wrong.push(`${kind} at ${node} took ${Math.round(took)} ms, and must take at most ${limit + SLACK_MS}: ${answer.outcome}`)
    if (!documented[kind].includes(answer.outcome)) this.wrong.push(`${kind} at ${node}: "${answer.outcome}" is not documented, ${JSON.stringify(answer.body)}`)
    return answer
  }

  /** Broadcasts from a random node; resolves with its name and the unique content of the message. */
  async broadcast (topic: boolean): Promise<{ node: string, once: string, answer: Answer }> {
    const [node, once] = [this.#node(), this.#name('broadcast')]
    return { node, once, answer: await this.ask({ kind: 'broadcast', node, path: topic ? `/broadcast?topic=${TOPIC}` : '/broadcast', body: { once } }) }
  }

  async #lane (lane: number): Promise<void> {
    const mine = this.#devices.filter((_, at) => at % LANES === lane)
    while (!this.#stopping && mine.length > 0) {
      await this.#one(mine[Math.floor(this.#random() * mine.length)]!)
      await sleep(INTERVAL_MS * (0.5 + this.#random()))
    }
  }

  async #one (device: Device): Promise<void> {
    const chance = this.#random()
    if (chance < 0.4) await this.#letter(device, false)
    else if (chance < 0.5) await this.#letter(device, true)
    else if (chance < 0.6) await this.#send(device)
    else if (chance < 0.72) await this.#confirm(device)
    else if (chance < 0.9) await this.#call(device)
    else if (chance < 0.92) await this.broadcast(chance < 0.91)
    else if (chance < 0.96) await this.ask({ kind: 'list', node: this.#node(), method: 'GET', path: '/devices?limit=50' })
    else await this.ask({ kind: 'describe', node: this.#node(), method: 'GET', path: `/devices/${device.id}` })
  }

  /** Sends the next letter, or the last one again with the same key if it was not acknowledged. */
  async #letter (device: Device, confirm: boolean): Promise<void> {
    const post = this.posts.get(device)!
    const number = post.pending ??= post.attempts.push({ attemptedAt: performance.now(), acknowledgedAt: undefined }) - 1
    const { outcome, body } = await this.ask({
      kind: confirm ? 'letter with confirm' : 'letter',
      node: this.#node(),
      path: `/devices/${device.id}/messages?ttl=3600${confirm ? `&confirm=true&timeout=${TIMEOUT_S}` : ''}`,
      body: { letter: number },
      key: `${device.id} ${number}`,
      ...(confirm && { timeout: TIMEOUT_S })
    })
    if (!outcome.startsWith('20')) return
    post.attempts[number]!.acknowledgedAt = performance.now()
    post.acknowledged.set(number, body.id)
    post.pending = undefined
  }

  async #send (device: Device): Promise<void> {
    await this.ask({ kind: 'send', node: this.#node(), path: `/devices/${device.id}/messages`, body: { once: this.#name('send') } })
  }

  async #confirm (device: Device): Promise<void> {
    const once = this.#name('confirm')
    const path = `/devices/${device.id}/messages?confirm=true&timeout=${TIMEOUT_S}`
    const { outcome } = await this.ask({ kind: 'confirm', node: this.#node(), path, body: { once }, timeout: TIMEOUT_S })
    if (outcome.startsWith('200')) this.done.set(once, device)
  }

  async #call (device: Device): Promise<void> {
    const once = this.#name('call')
    const path = `/devices/${device.id}/calls/work?timeout=${TIMEOUT_S}`
    const { outcome, body } = await this.ask({ kind: 'call', node: this.#node(), path, body: { once }, timeout: TIMEOUT_S })
    if (outcome !== '200') return
    this.done.set(once, device)
    if (body !== once) this.wrong.push(`the result of call ${once} is ${JSON.stringify(body)}`)
  }

  #node (): string {
    return NODES[Math.floor(this.#random() * NODES.length)]!
  }

  #name (kind: Kind): string {
    return `${kind}-${this.#asked++}`
  }

  async #fetch (url: string, method: string, body?: unknown, key?: string): Promise<Answer> {
    try {
      const response = await fetch(url, {
        method,
        signal: AbortSignal.timeout(FETCH_TIMEOUT_MS),
        headers: { ...(body !== undefined && { 'content-type': 'application/json' }), ...(key !== undefined && { 'idempotency-key': key }) },
        ...(body !== undefined && { body: JSON.stringify(body) })
      })
      const answer = await response.json() as any
      const word = answer?.code ?? (typeof answer?.status === 'string' ? answer.status : response.ok ? undefined : answer?.error)
      return { outcome: word === undefined ? String(response.status) : `${response.status} ${word}`, body: answer }
    } catch (error) {
      const { name, cause } = error as Error & { cause?: { code?: string, message?: string } }
      return { outcome: `no answer (${cause?.code ?? cause?.message ?? name})`, body: undefined }
    }
  }
}
