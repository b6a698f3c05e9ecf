import type { FastifyBaseLogger } from 'fastify'
import { WORKER_DISCOVERY_TOPIC, valueOf, WORKERS_TOPIC, MAX_MISSED_ANNOUNCEMENTS, WORKER_ANNOUNCE_INTERVAL_MS, type WorkerAnnouncement, type Backplane, type DeviceConnection, type Unwatch } from '../cluster/backplane.ts'
import type { Credentials, Device } from '../connection/device.ts'
import { Failure } from '../protocol/errors.ts'
import { isUnreachable } from '../messaging/letters.ts'
import type { RemoteMethods } from '../gateway/methods.ts'

/** What a device asked, until a worker has answered. */
interface PendingRequest {
  readonly method: string
  readonly params: unknown
  readonly device: Device
  readonly signal: AbortSignal | undefined
  resolve (value: unknown): void
  reject (error: unknown): void
}

/** A worker, as this node knows it. */
interface PoolMember {
  readonly name: string
  methods: Set<string>
  leaving: boolean
  /** Looks since it was last heard of. */
  unheard: number
  /** Connections that were given to it, and when the last one was. */
  connections: number
  lastGiven: number
  /** What it has not answered yet, in the order asked, and what tells it that nobody waits any more. */
  readonly underway: Map<PendingRequest, AbortController>
  /** What must wait until it is known to have got all that came before. */
  held: PendingRequest[] | undefined
}

/** The workers that this node has heard of. Each connection stays with one of them, until that one leaves. */
export class WorkerPool implements RemoteMethods {
  readonly #backplane: Backplane
  readonly #log: FastifyBaseLogger
  readonly #known = new Map<string, PoolMember>()
  /** The workers of a connection, and its number with each: one, unless they answer different methods. */
  readonly #chosen = new WeakMap<Device, Map<PoolMember, number>>()
  #looking!: NodeJS.Timeout
  #unwatch!: Unwatch
  /** Connections that were given to a worker. */
  #given = 0

  constructor (backplane: Backplane, log: FastifyBaseLogger) {
    this.#backplane = backplane
    this.#log = log
  }

  /** Hears of workers from now on, and resolves once those that are there have told. */
  async open (): Promise<void> {
    this.#unwatch = this.#backplane.watch(WORKERS_TOPIC, ({ data }) => {
      this.#hear(data as WorkerAnnouncement)
      return 0
    })
    this.#looking = setInterval(() => this.#look(), WORKER_ANNOUNCE_INTERVAL_MS).unref()
    try {
      await this.#backplane.publish({ id: 'muster', topic: WORKER_DISCOVERY_TOPIC, data: null })
    } catch (error) {
      // a backplane that is not there yet says so itself, and workers tell of themselves once it is
      if (!isUnreachable(error)) this.#log.warn({ err: error }, 'the workers cannot be asked who they are')
    }
  }

  answers (method: string): boolean {
    for (const worker of this.#known.values()) if (takes(worker, method)) return true
    return false
  }

  /** Rejects with `dropped` where the worker is gone before it has answered. */
  answer (method: string, params: unknown, device: Device, signal?: AbortSignal): Promise<unknown> {
    return new Promise((resolve, reject) => this.#give({ method, params, device, signal, resolve, reject }))
  }

  close (): void {
    clearInterval(this.#looking)
    this.#unwatch()
  }

  #hear ({ name, methods, leaving }: WorkerAnnouncement): void {
    let worker = this.#known.get(name)
    if (!worker) {
      if (leaving) return
      worker = { name, methods: new Set(), leaving, unheard: 0, connections: 0, lastGiven: 0, underway: new Map(), held: undefined }
      this.#known.set(name, worker)
      this.#log.info({ worker: name }, 'a worker has come')
    }
    worker.methods = new Set(methods)
    worker.unheard = 0
    if (leaving && !worker.leaving) void this.#part(worker)
  }

  /**
   * A worker says that it leaves. What its devices ask from now on is for others, who must not begin with it before this one
   * has begun with what came earlier: once it answers this, it has.
   */
  async #part (worker: PoolMember): Promise<void> {
    worker.leaving = true
    worker.held = []
    try {
      if (!await this.#backplane.ask(worker.name, { kind: 'reached' })) return this.#lose(worker)
    } catch (error) {
      this.#log.warn({ err: error, worker: worker.name }, 'a worker that leaves cannot be asked')
    }
    this.#giveHeld(worker)
  }

  #look (): void {
    for (const worker of this.#known.values()) {
      if (++worker.unheard > MAX_MISSED_ANNOUNCEMENTS) this.#lose(worker)
    }
  }

  /** The worker is gone. What it was asked from `lost` on has not reached it, and is for others; what came before it may have begun. */
  #lose (worker: PoolMember, lost?: PendingRequest): void {
    this.#known.delete(worker.name)
    this.#log[worker.leaving ? 'info' : 'warn']({ worker: worker.name, underway: worker.underway.size }, 'a worker is gone')
    const underway = [...worker.underway]
    worker.underway.clear()
    const begun = lost ? underway.findIndex(([asked]) => asked === lost) : underway.length
    for (const [asked, nobodyWaits] of underway.slice(0, begun)) {
      nobodyWaits.abort()
      asked.reject(new Failure('dropped', { message: 'The worker that had it is gone' }))
    }
    for (const [asked] of underway.slice(begun)) this.#give(asked)
    this.#giveHeld(worker)
  }

  #giveHeld (worker: PoolMember): void {
    const held = worker.held ?? []
    worker.held = undefined
    for (const asked of held) this.#give(asked)
  }

  #give (asked: PendingRequest): void {
    if (asked.signal?.aborted) return asked.reject(new Failure('dropped'))
    const choice = this.#workerOf(asked)
    if (!choice) return asked.reject(new Failure('dropped', { message: 'No worker is left' }))
    const { worker, turn } = choice
    if (worker.held) worker.held.push(asked)
    else void this.#ask(worker, asked, turn)
  }

  async #ask (worker: PoolMember, asked: PendingRequest, turn: number): Promise<void> {
    const { method, params, device, signal } = asked
    const nobodyWaits = new AbortController()
    signal?.addEventListener('abort', () => nobodyWaits.abort(), { once: true })
    worker.underway.set(asked, nobodyWaits)
    try {
      const answer = await this.#backplane.ask(worker.name, { kind: 'answer', method, params, connection: connectionOf(device), turn }, nobodyWaits.signal)
      if (!worker.underway.has(asked)) return // the worker was lost meanwhile
      if (!answer) return this.#lose(worker, asked)
      asked.resolve(valueOf(answer))
    } catch (error) {
      if (worker.underway.has(asked)) asked.reject(error)
    }
    worker.underway.delete(asked)
  }

  /** The worker of this connection; one that leaves, as long as something is held for it. */
  #workerOf ({ device, method }: PendingRequest): { worker: PoolMember, turn: number } | undefined {
    const chosen = this.#chosen.get(device) ?? new Map<PoolMember, number>()
    for (const [worker, turn] of chosen) {
      const stays = this.#known.get(worker.name) === worker && (!worker.leaving || worker.held)
      if (!stays) chosen.delete(worker)
      else if (worker.methods.has(method)) return { worker, turn }
    }
    const able = [...this.#known.values()].filter(worker => takes(worker, method))
    const worker = able.toSorted((one, other) => one.lastGiven - other.lastGiven)[0]
    if (!worker) return undefined
    worker.lastGiven = ++this.#given
    const turn = worker.connections++
    this.#chosen.set(device, chosen.set(worker, turn))
    return { worker, turn }
  }
}

function takes ({ leaving, methods }: PoolMember, method: string): boolean {
  return !leaving && methods.has(method)
}

function connectionOf ({ id, node, generation, since, address, localAddress, protocol, topics, credentials }: Device): DeviceConnection {
  return { id, node, generation, since, address, localAddress, protocol, topics: [...topics], credentials: portable(credentials) }
}

/** As much of it as JSON can tell. */
function portable (credentials: Credentials): Record<string, unknown> {
  const members = Object.entries(credentials).map(([name, value]) => [name, throughJson(value)])
  return Object.fromEntries(members.filter(([, value]) => value !== undefined))
}

function throughJson (value: unknown): unknown {
  try {
    const text = JSON.stringify(value) as string | undefined
    return text === undefined ? undefined : JSON.parse(text)
  } catch { // a circle, a bigint
    return undefined
  }
}
