import type { FastifyBaseLogger } from 'fastify'
import type { Presence } from '../cluster/backplane.ts'
import type { Ending } from '../storage/mailbox.ts'
import type { Device, Disconnect } from '../connection/device.ts'
import { Failure } from '../protocol/errors.ts'
import { isThenable } from '../protocol/peer.ts'
import { invoke } from '../protocol/user-code.ts'

export interface LetterEvent {
  deviceId: string
  id: string
}

/** The events of devices and letters on this node, with the arguments of their listeners. */
export type EventMap = {
  connected: [device: Device]
  disconnected: [device: Device, leave: Disconnect]
  message: [data: unknown, device: Device]
} & Record<Ending, [letter: LetterEvent]>

/** The events of devices on any node. The generation tells which of two events of a device is the later. */
export interface EverywhereMap {
  connected: [presence: Presence]
  disconnected: [presence: Presence]
}

/** Does not count as a listener of `message`: a device whose message has no listener gets an error. */
interface WatchMap {
  'message received': [data: unknown, device: Device]
}

type AllEvents = EventMap & WatchMap & { [Name in keyof EverywhereMap as `${Name} everywhere`]: EverywhereMap[Name] }
type ListenersOf = { [Name in keyof AllEvents]: Set<(...args: AllEvents[Name]) => unknown> }

/** All events; the type makes the compiler find one that is missing. */
const eventNames: Record<keyof AllEvents, true> = {
  connected: true,
  disconnected: true,
  message: true,
  delivered: true,
  expired: true,
  cancelled: true,
  replaced: true,
  refused: true,
  'dead-lettered': true,
  damaged: true,
  'message received': true,
  'connected everywhere': true,
  'disconnected everywhere': true
}

/** Thrown by a listener that logs its failures itself, for example because there may be many. */
export class LoggedFailure extends Failure {}

/** Calls the listeners of events. An error of one listener is logged, and the others are still called. */
export class Events {
  readonly #listeners: Partial<ListenersOf> = {}
  readonly #log: FastifyBaseLogger

  constructor (log: FastifyBaseLogger) {
    this.#log = log
  }

  on<Name extends keyof AllEvents> (name: Name, listener: (...args: AllEvents[Name]) => unknown): void {
    checkName(name)
    this.#listenersOf(name).add(listener)
  }

  off<Name extends keyof AllEvents> (name: Name, listener: (...args: AllEvents[Name]) => unknown): void {
    checkName(name)
    this.#listenersOf(name).delete(listener)
  }

  /** Whether the event has a listener. */
  hears (name: keyof EventMap | keyof WatchMap): boolean {
    return this.#listenersOf(name).size > 0
  }

  /** Returns whether every listener has succeeded; a promise of it if some have not finished. */
  emit<Name extends keyof AllEvents> (name: Name, ...args: AllEvents[Name]): boolean | Promise<boolean> {
    let hasFailed = false
    let unfinished: Array<Promise<boolean>> | undefined
    for (const listener of this.#listenersOf(name)) {
      try {
        const outcome = listener(...args)
        if (isThenable(outcome)) (unfinished ??= []).push(this.#finished(name, outcome))
      } catch (error) {
        this.#failed(name, error)
        hasFailed = true
      }
    }
    if (!unfinished) return !hasFailed
    if (unfinished.length === 1 && !hasFailed) return unfinished[0]!
    return Promise.all(unfinished).then(all => !hasFailed && all.every(Boolean))
  }

  #finished (name: keyof AllEvents, outcome: PromiseLike<unknown>): Promise<boolean> {
    return invoke(() => outcome).then(() => true, error => {
      this.#failed(name, error)
      return false
    })
  }

  #listenersOf<Name extends keyof AllEvents> (name: Name): ListenersOf[Name] {
    return this.#listeners[name] ??= new Set() as ListenersOf[Name]
  }

  #failed (event: keyof AllEvents, error: unknown): void {
    if (!(error instanceof LoggedFailure)) this.#log.error({ err: error, event }, 'event listener failed')
  }
}

function checkName (name: string): void {
  if (!Object.hasOwn(eventNames, name)) throw new TypeError(`There is no event "${name}"`)
}
