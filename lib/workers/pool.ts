import type { FastifyBaseLogger } from 'fastify'
import { WORKER_DISCOVERY_TOPIC, valueOf, WORKERS_TOPIC, MAX_MISSED_ANNOUNCEMENTS, WORKER_ANNOUNCE_INTERVAL_MS, type WorkerAnnouncement, type Backplane, type DeviceConnection, type Unwatch } from '../cluster/backplane.ts'
import type { Credentials, Device } from '../connection/device.ts'
import { operate, operations } from '../connection/operation.ts'
import { Failure, isUnreachable } from '../protocol/errors.ts'
import type { RemoteMethods } from '../gateway/methods.ts'
import { contextOf, type RequestContext, type RequestLike } from '../protocol/request-context.ts'

/** A call of a device that no worker has answered yet. */
interface PendingRequest {
  readonly method: string
  readonly params: unknown
  readonly device: Device
  readonly context: RequestContext | undefined
  readonly signal: AbortSignal | undefined
  resolve (value: unknown): void
  reject (error: unknown): void
}

/** A worker, as known to this node. */
interface PoolMember {
  readonly name: string
  methods: Set<string>
  leaving: boolean
  /** Announcements missed in a row. */
  missed: number
  /** Number of connections assigned to it, and the sequence number of the last assignment. */
  connections: number
  lastAssigned: number
  /** Unanswered requests in order, each with what cancels it at the worker. */
  readonly pending: Map<PendingRequest, AbortController>
  /** Requests that wait until a leaving worker has received all earlier ones. */
  queued: PendingRequest[] | undefined
}

/** The known workers. Each connection stays with one of them until that one leaves. */
export class WorkerPool implements RemoteMethods {
  readonly #backplane: Backplane
  readonly #log: FastifyBaseLogger
  readonly #members = new Map<string, PoolMember>()
  /** The workers of a connection, with its number at each; several only if they answer different methods. */
  readonly #membersOf = new WeakMap<Device, Map<PoolMember, number>>()
  #timer!: NodeJS.Timeout
  #unwatch!: Unwatch
  /** Assignments of connections to workers so far. */
  #assignments = 0

  constructor (backplane: Backplane, log: FastifyBaseLogger) {
    this.#backplane = backplane
    this.#log = log
  }

  /** Watches announcements from now on, and resolves once the existing workers have been asked for theirs. */
  async open (): Promise<void> {
    this.#unwatch = this.#backplane.watch(WORKERS_TOPIC, ({ data }) => {
      this.#receive(data as WorkerAnnouncement)
      return 0
    })
    this.#timer = setInterval(() => this.#checkAnnouncements(), WORKER_ANNOUNCE_INTERVAL_MS).unref()
    try {
      await this.#backplane.publish({ id: 'discovery', topic: WORKER_DISCOVERY_TOPIC, data: null })
    } catch (error) {
      // an unreachable backplane reports that itself, and workers announce themselves once it is reachable
      if (!isUnreachable(error)) this.#log.warn({ err: error }, 'worker discovery failed')
    }
  }

  answers (method: string): boolean {
    for (const worker of this.#members.values()) if (accepts(worker, method)) return true
    return false
  }

  /** Rejects with `dropped` if the worker is gone before it has answered. */
  answer (method: string, params: unknown, device: Device, request: RequestLike, signal?: AbortSignal): Promise<unknown> {
    return operations.hasSubscribers ? this.#delegateAsOperation(method, params, device, request, signal) : this.#delegate(method, params, device, request, signal)
  }

  #delegateAsOperation (method: string, params: unknown, device: Device, request: RequestLike, signal: AbortSignal | undefined): Promise<unknown> {
    const facts = { kind: 'delegate', node: device.node, deviceId: device.id, method, isKnown: true } as const
    return operate(facts, request, request => this.#delegate(method, params, device, request, signal))
  }

  #delegate (method: string, params: unknown, device: Device, request: RequestLike | undefined, signal: AbortSignal | undefined): Promise<unknown> {
    return new Promise((resolve, reject) => this.#assign({ method, params, device, context: contextOf(request), signal, resolve, reject }))
  }

  close (): void {
    clearInterval(this.#timer)
    this.#unwatch()
  }

  #receive ({ name, methods, leaving }: WorkerAnnouncement): void {
    let worker = this.#members.get(name)
    if (!worker) {
      if (leaving) return
      worker = { name, methods: new Set(), leaving, missed: 0, connections: 0, lastAssigned: 0, pending: new Map(), queued: undefined }
      this.#members.set(name, worker)
      this.#log.info({ worker: name }, 'worker joined')
    }
    worker.methods = new Set(methods)
    worker.missed = 0
    if (leaving && !worker.leaving) void this.#retire(worker)
  }

  /**
   * A worker has announced that it leaves. Later requests of its devices go to other workers, which must not start them before this one
   * has started all earlier ones. Its answer to `reached` proves that it has.
   */
  async #retire (worker: PoolMember): Promise<void> {
    worker.leaving = true
    worker.queued = []
    try {
      if (!await this.#backplane.ask(worker.name, { kind: 'reached' })) return this.#lose(worker)
    } catch (error) {
      this.#log.warn({ err: error, worker: worker.name }, 'leaving worker could not be asked')
    }
    this.#giveQueued(worker)
  }

  #checkAnnouncements (): void {
    for (const worker of this.#members.values()) {
      if (++worker.missed > MAX_MISSED_ANNOUNCEMENTS) this.#lose(worker)
    }
  }

  /** The worker is gone. Requests from `lost` on have not reached it and go to other workers; it may have started earlier ones, so these fail. */
  #lose (worker: PoolMember, lost?: PendingRequest): void {
    this.#members.delete(worker.name)
    this.#log[worker.leaving ? 'info' : 'warn']({ worker: worker.name, pending: worker.pending.size }, 'worker left')
    const pending = [...worker.pending]
    worker.pending.clear()
    const begun = lost ? pending.findIndex(([request]) => request === lost) : pending.length
    for (const [request, cancellation] of pending.slice(0, begun)) {
      cancellation.abort()
      request.reject(new Failure('dropped', { message: 'The worker that had it is gone' }))
    }
    for (const [request] of pending.slice(begun)) this.#assign(request)
    this.#giveQueued(worker)
  }

  #giveQueued (worker: PoolMember): void {
    const queued = worker.queued ?? []
    worker.queued = undefined
    for (const request of queued) this.#assign(request)
  }

  #assign (request: PendingRequest): void {
    // a message counts even if its device has disconnected meanwhile
    if (request.signal?.aborted && request.method !== 'message') return request.reject(new Failure('dropped'))
    const choice = this.#workerOf(request)
    if (!choice) return request.reject(new Failure('dropped', { message: 'No worker is left' }))
    const { worker, turn } = choice
    if (worker.queued) worker.queued.push(request)
    else void this.#ask(worker, request, turn)
  }

  async #ask (worker: PoolMember, request: PendingRequest, turn: number): Promise<void> {
    const { method, params, device, context, signal } = request
    const cancellation = new AbortController()
    signal?.addEventListener('abort', () => cancellation.abort(), { once: true })
    worker.pending.set(request, cancellation)
    try {
      const answer = await this.#backplane.ask(worker.name, { kind: 'answer', method, params, connection: connectionOf(device), turn, context }, cancellation.signal)
      if (!worker.pending.has(request)) return // the worker was lost meanwhile
      if (!answer) return this.#lose(worker, request)
      request.resolve(valueOf(answer))
    } catch (error) {
      if (worker.pending.has(request)) request.reject(error)
    }
    worker.pending.delete(request)
  }

  /** The worker of this connection; a leaving one only while requests are queued behind it. */
  #workerOf ({ device, method }: PendingRequest): { worker: PoolMember, turn: number } | undefined {
    const chosen = this.#membersOf.get(device) ?? new Map<PoolMember, number>()
    for (const [worker, turn] of chosen) {
      const stays = this.#members.get(worker.name) === worker && (!worker.leaving || worker.queued)
      if (!stays) chosen.delete(worker)
      else if (worker.methods.has(method)) return { worker, turn }
    }
    const candidates = [...this.#members.values()].filter(worker => accepts(worker, method))
    const worker = candidates.toSorted((one, other) => one.lastAssigned - other.lastAssigned)[0]
    if (!worker) return undefined
    worker.lastAssigned = ++this.#assignments
    const turn = worker.connections++
    this.#membersOf.set(device, chosen.set(worker, turn))
    return { worker, turn }
  }
}

function accepts ({ leaving, methods }: PoolMember, method: string): boolean {
  return !leaving && methods.has(method)
}

function connectionOf ({ id, node, generation, since, address, localAddress, protocol, topics, credentials }: Device): DeviceConnection {
  return { id, node, generation, since, address, localAddress, protocol, topics: [...topics], credentials: portable(credentials) }
}

/** The part of the credentials that JSON can represent. */
function portable (credentials: Credentials): Record<string, unknown> {
  const members = Object.entries(credentials).map(([name, value]) => [name, throughJson(value)])
  return Object.fromEntries(members.filter(([, value]) => value !== undefined))
}

function throughJson (value: unknown): unknown {
  try {
    const text = JSON.stringify(value) as string | undefined
    return text === undefined ? undefined : JSON.parse(text)
  } catch { // circular, or a bigint
    return undefined
  }
}
