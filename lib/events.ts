import type { FastifyBaseLogger } from 'fastify'
import type { Ending } from './mailbox.ts'
import type { Device, Leave } from './device.ts'

export interface LetterEvent {
  deviceId: string
  id: string
}

/** What happens to devices and letters on this node, with what its listeners are given. */
export type EventMap = {
  connected: [device: Device]
  disconnected: [device: Device, leave: Leave]
  message: [data: unknown, device: Device]
} & Record<Ending, [letter: LetterEvent]>

type ListenersOf = { [Name in keyof EventMap]: Set<(...args: EventMap[Name]) => unknown> }

/** Tells listeners; what one of them throws is logged and harms nobody. */
export class Events {
  readonly #listeners: Partial<ListenersOf> = {}
  readonly #log: FastifyBaseLogger

  constructor (log: FastifyBaseLogger) {
    this.#log = log
  }

  on<Name extends keyof EventMap> (name: Name, listener: (...args: EventMap[Name]) => unknown): void {
    this.#of(name).add(listener)
  }

  off<Name extends keyof EventMap> (name: Name, listener: (...args: EventMap[Name]) => unknown): void {
    this.#of(name).delete(listener)
  }

  /** Whether anybody listens. */
  hears (name: keyof EventMap): boolean {
    return this.#of(name).size > 0
  }

  emit<Name extends keyof EventMap> (name: Name, ...args: EventMap[Name]): void {
    for (const listener of this.#of(name)) {
      try {
        const outcome = listener(...args)
        if (outcome instanceof Promise) outcome.catch(error => this.#failed(name, error))
      } catch (error) {
        this.#failed(name, error)
      }
    }
  }

  #of<Name extends keyof EventMap> (name: Name): ListenersOf[Name] {
    return this.#listeners[name] ??= new Set() as ListenersOf[Name]
  }

  #failed (event: keyof EventMap, error: unknown): void {
    this.#log.error({ err: error, event }, 'a listener failed')
  }
}
