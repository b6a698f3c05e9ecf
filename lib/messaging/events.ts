import type { FastifyBaseLogger } from 'fastify'
import type { Presence } from '../cluster/backplane.ts'
import type { Ending } from '../storage/mailbox.ts'
import type { Device, Disconnect } from '../connection/device.ts'
import { isThenable } from '../protocol/peer.ts'
import { invoke } from '../protocol/user-code.ts'

export interface LetterEvent {
  deviceId: string
  id: string
}

/** What happens to devices and letters on this node, with what its listeners are given. */
export type EventMap = {
  connected: [device: Device]
  disconnected: [device: Device, leave: Disconnect]
  message: [data: unknown, device: Device]
} & Record<Ending, [letter: LetterEvent]>

/** What happens to devices on any node. The generation tells which of two events of a device is the later. */
export interface EverywhereMap {
  connected: [presence: Presence]
  disconnected: [presence: Presence]
}

type AllEvents = EventMap & { [Name in keyof EverywhereMap as `${Name} everywhere`]: EverywhereMap[Name] }
type ListenersOf = { [Name in keyof AllEvents]: Set<(...args: AllEvents[Name]) => unknown> }

/** Tells listeners; what one of them throws is logged and harms nobody. */
export class Events {
  readonly #listeners: Partial<ListenersOf> = {}
  readonly #log: FastifyBaseLogger

  constructor (log: FastifyBaseLogger) {
    this.#log = log
  }

  on<Name extends keyof AllEvents> (name: Name, listener: (...args: AllEvents[Name]) => unknown): void {
    this.#of(name).add(listener)
  }

  off<Name extends keyof AllEvents> (name: Name, listener: (...args: AllEvents[Name]) => unknown): void {
    this.#of(name).delete(listener)
  }

  /** Whether anybody listens. */
  hears (name: keyof EventMap): boolean {
    return this.#of(name).size > 0
  }

  emit<Name extends keyof AllEvents> (name: Name, ...args: AllEvents[Name]): void {
    for (const listener of this.#of(name)) {
      try {
        const outcome = listener(...args)
        if (isThenable(outcome)) invoke(() => outcome).catch(error => this.#failed(name, error))
      } catch (error) {
        this.#failed(name, error)
      }
    }
  }

  #of<Name extends keyof AllEvents> (name: Name): ListenersOf[Name] {
    return this.#listeners[name] ??= new Set() as ListenersOf[Name]
  }

  #failed (event: keyof AllEvents, error: unknown): void {
    this.#log.error({ err: error, event }, 'a listener failed')
  }
}
