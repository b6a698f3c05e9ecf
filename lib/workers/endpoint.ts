import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import {
  answerOf, WORKER_DISCOVERY_TOPIC, WORKERS_TOPIC, MAX_MISSED_ANNOUNCEMENTS, WORKER_ANNOUNCE_INTERVAL_MS,
  type WorkerAnnouncement, type Answer, type Backplane, type WorkerRequest, type Owner, type Ownership, type Presence, type Unwatch
} from '../cluster/backplane.ts'
import { Failure } from '../protocol/errors.ts'
import { InboundCall } from '../protocol/peer.ts'

interface Parts {
  backplane: Backplane
  node: string
  log: FastifyBaseLogger
  /** What is answered here. */
  methods: () => string[]
  answer: (errand: WorkerRequest & { kind: 'answer' }, inbound: InboundCall) => unknown
}

/** Who was still for so long may have been taken for gone. */
const STALE_AFTER_MS = (MAX_MISSED_ANNOUNCEMENTS - 1) * WORKER_ANNOUNCE_INTERVAL_MS
const LOOK_AGAIN = 10

/** Where a worker is found on the backplane: it has a name there, tells what it answers, and answers. */
export class WorkerEndpoint implements Owner {
  readonly #parts: Parts
  readonly #since = Date.now()
  /** What is being answered; each of them can be cut short. */
  readonly #underway = new Set<() => void>()
  #name = ''
  #ownership: Ownership | undefined
  #telling: NodeJS.Timeout | undefined
  #unwatch!: Unwatch
  #toldAt = 0
  #tellsSoon = false
  #leaves = false
  #left: Promise<void> | undefined

  constructor (parts: Parts) {
    this.#parts = parts
  }

  get presence (): Omit<Presence, 'generation'> {
    return { deviceId: this.#name, node: this.#parts.node, since: this.#since }
  }

  async open (): Promise<void> {
    await this.#settle()
    this.#unwatch = this.#parts.backplane.watch(WORKER_DISCOVERY_TOPIC, () => {
      void this.#tell()
      return 0
    })
    // what keeps the process alive is the connection of its backplane
    this.#telling = setInterval(() => void this.#tellAgain(), WORKER_ANNOUNCE_INTERVAL_MS).unref()
  }

  /** What is answered here has changed. */
  changed (): void {
    if (this.#tellsSoon) return
    this.#tellsSoon = true
    queueMicrotask(() => {
      this.#tellsSoon = false
      void this.#tell()
    })
  }

  async answer (request: WorkerRequest, signal?: AbortSignal): Promise<Answer> {
    switch (request.kind) {
      case 'answer': return await answerOf(() => this.#serve(request, signal))
      case 'reached':
      case 'ring': return { ok: true, value: null }
    }
  }

  listensTo (): boolean {
    return false
  }

  /** Somebody else has the name. */
  yield (): void {
    void this.close(0)
  }

  /** Says so first, finishes what is under way as long as there is time, then goes. */
  close (patience: number): Promise<void> {
    this.#left ??= this.#leave(patience)
    return this.#left
  }

  async #leave (patience: number): Promise<void> {
    const deadline = Date.now() + patience
    this.#leaves = true
    await this.#tell()
    while (this.#underway.size > 0 && Date.now() < deadline) await sleep(LOOK_AGAIN)
    clearInterval(this.#telling)
    this.#unwatch()
    await this.#quit()
  }

  /** Takes a name, one that nobody ever had. */
  async #settle (): Promise<void> {
    const { backplane, node } = this.#parts
    this.#name = `$worker/${node}/${randomBytes(6).toString('base64url')}`
    this.#ownership = await backplane.own(this.#name, this)
    this.#toldAt = performance.now()
  }

  async #quit (): Promise<void> {
    for (const cut of this.#underway) cut()
    try {
      await this.#ownership!.release()
    } catch (error) {
      this.#parts.log.warn({ err: error }, 'the name of this worker could not be released')
    }
  }

  async #tellAgain (): Promise<void> {
    try {
      if (this.#isStale) await this.#beginAnew()
      await this.#tell()
    } catch (error) {
      this.#parts.log.warn({ err: error }, 'this worker cannot begin anew')
    }
  }

  /** What it had was given up while it stood still; what came in meanwhile as well, and may be done by others by now. */
  async #beginAnew (): Promise<void> {
    this.#parts.log.warn({ worker: this.#name }, 'this worker stood still, and begins anew')
    await this.#quit()
    await this.#settle()
  }

  get #isStale (): boolean {
    return performance.now() - this.#toldAt > STALE_AFTER_MS
  }

  async #tell (): Promise<void> {
    this.#toldAt = performance.now()
    const data: WorkerAnnouncement = { name: this.#name, methods: this.#parts.methods(), leaving: this.#leaves }
    try {
      await this.#parts.backplane.publish({ id: 'worker', topic: WORKERS_TOPIC, data })
    } catch (error) {
      this.#parts.log.warn({ err: error }, 'this worker cannot make itself heard')
    }
  }

  #serve (errand: WorkerRequest & { kind: 'answer' }, signal?: AbortSignal): Promise<unknown> {
    if (this.#isStale) throw new Failure('dropped')
    return new Promise((resolve, reject) => {
      const inbound = new InboundCall()
      const cut = () => {
        this.#underway.delete(cut)
        inbound.abort()
        reject(new Failure('dropped'))
      }
      this.#underway.add(cut)
      signal?.addEventListener('abort', cut, { once: true })
      const answering = (async () => await this.#parts.answer(errand, inbound))()
      answering.then(resolve, reject).finally(() => this.#underway.delete(cut))
    })
  }
}
