import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import {
  answerOf, WORKER_DISCOVERY_TOPIC, WORKERS_TOPIC, MAX_MISSED_ANNOUNCEMENTS, WORKER_ANNOUNCE_INTERVAL_MS,
  type WorkerAnnouncement, type Answer, type Backplane, type WorkerRequest, type Owner, type Ownership, type Presence, type Unwatch
} from '../cluster/backplane.ts'
import { Failure } from '../protocol/errors.ts'
import { InboundCall } from '../protocol/peer.ts'

interface EndpointParts {
  backplane: Backplane
  node: string
  log: FastifyBaseLogger
  /** The methods that have handlers. */
  methods: () => string[]
  answer: (request: WorkerRequest & { kind: 'answer' }, inbound: InboundCall) => unknown
}

/** After such a silence the pools may have given this worker up. */
const STALE_AFTER_MS = (MAX_MISSED_ANNOUNCEMENTS - 1) * WORKER_ANNOUNCE_INTERVAL_MS
const DRAIN_POLL_MS = 10

/** A worker on the backplane: owns a name, announces its methods and answers requests. */
export class WorkerEndpoint implements Owner {
  readonly #parts: EndpointParts
  readonly #since = Date.now()
  /** Aborts of the requests that are being answered. */
  readonly #running = new Set<() => void>()
  #name = ''
  #ownership: Ownership | undefined
  #announceTimer: NodeJS.Timeout | undefined
  #unwatch!: Unwatch
  #announcedAt = 0
  #isAnnouncementQueued = false
  #isLeaving = false
  #closed: Promise<void> | undefined

  constructor (parts: EndpointParts) {
    this.#parts = parts
  }

  get presence (): Omit<Presence, 'generation'> {
    return { deviceId: this.#name, node: this.#parts.node, since: this.#since }
  }

  async open (): Promise<void> {
    await this.#own()
    this.#unwatch = this.#parts.backplane.watch(WORKER_DISCOVERY_TOPIC, () => {
      void this.#announce()
      return 0
    })
    // the connection of the backplane keeps the process alive
    this.#announceTimer = setInterval(() => void this.#keepAnnouncing(), WORKER_ANNOUNCE_INTERVAL_MS).unref()
  }

  /** Announces the methods again, once for all changes of a turn. */
  changed (): void {
    if (this.#isAnnouncementQueued) return
    this.#isAnnouncementQueued = true
    queueMicrotask(() => {
      this.#isAnnouncementQueued = false
      void this.#announce()
    })
  }

  async answer (request: WorkerRequest, signal?: AbortSignal): Promise<Answer> {
    switch (request.kind) {
      case 'answer': return await this.#answer(request, signal)
      case 'reached':
      case 'wake': return { ok: true, value: null }
    }
  }

  async #answer (request: WorkerRequest & { kind: 'answer' }, signal?: AbortSignal): Promise<Answer> {
    const answer = await answerOf(() => this.#handle(request, signal))
    const { context, connection, method } = request
    this.#parts.log.debug({ reqId: context?.id, deviceId: connection.id, method, reason: answer.ok ? undefined : answer.reason }, 'call answered')
    return answer
  }

  listensTo (): boolean {
    return false
  }

  /** Another process owns the name. */
  yield (): void {
    void this.close(0)
  }

  /** Announces that it leaves, waits for running handlers until the timeout, then aborts the rest and releases its name. */
  close (timeout: number): Promise<void> {
    this.#closed ??= this.#drain(timeout)
    return this.#closed
  }

  async #drain (timeout: number): Promise<void> {
    const deadline = Date.now() + timeout
    this.#isLeaving = true
    await this.#announce()
    while (this.#running.size > 0 && Date.now() < deadline) await sleep(DRAIN_POLL_MS)
    clearInterval(this.#announceTimer)
    this.#unwatch()
    await this.#release()
  }

  /** Takes a name that was never used before. */
  async #own (): Promise<void> {
    const { backplane, node } = this.#parts
    this.#name = `$worker/${node}/${randomBytes(6).toString('base64url')}`
    this.#ownership = await backplane.own(this.#name, this)
    this.#announcedAt = performance.now()
  }

  async #release (): Promise<void> {
    for (const abort of this.#running) abort()
    try {
      await this.#ownership!.release()
    } catch (error) {
      this.#parts.log.warn({ err: error }, 'worker name could not be released')
    }
  }

  async #keepAnnouncing (): Promise<void> {
    try {
      if (this.#isStale) await this.#restart()
      await this.#announce()
    } catch (error) {
      this.#parts.log.warn({ err: error }, 'worker restart failed')
    }
  }

  /** The process was suspended too long: the pools have given its requests up, and others may answer them by now. Drops all and registers under a new name. */
  async #restart (): Promise<void> {
    this.#parts.log.warn({ worker: this.#name }, 'worker was suspended too long, registers again')
    await this.#release()
    await this.#own()
  }

  get #isStale (): boolean {
    return performance.now() - this.#announcedAt > STALE_AFTER_MS
  }

  async #announce (): Promise<void> {
    this.#announcedAt = performance.now()
    const data: WorkerAnnouncement = { name: this.#name, methods: this.#parts.methods(), leaving: this.#isLeaving }
    try {
      await this.#parts.backplane.publish({ id: 'worker', topic: WORKERS_TOPIC, data })
    } catch (error) {
      this.#parts.log.warn({ err: error }, 'worker announcement failed')
    }
  }

  #handle (request: WorkerRequest & { kind: 'answer' }, signal?: AbortSignal): Promise<unknown> {
    if (this.#isStale) throw new Failure('dropped')
    return new Promise((resolve, reject) => {
      const inbound = new InboundCall()
      const abort = () => {
        this.#running.delete(abort)
        inbound.abort()
        reject(new Failure('dropped'))
      }
      this.#running.add(abort)
      signal?.addEventListener('abort', abort, { once: true })
      const answer = (async () => await this.#parts.answer(request, inbound))()
      answer.then(resolve, reject).finally(() => this.#running.delete(abort))
    })
  }
}
