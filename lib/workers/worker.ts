import type { FastifyBaseLogger } from 'fastify'
import type { Backplane, ListPage, Presence, PublishResult, WorkerRequest } from '../cluster/backplane.ts'
import { operate, operations } from '../connection/operation.ts'
import type { BroadcastOptions, DeviceDetails } from '../gateway/devices.ts'
import type { NodeHealth } from '../gateway/readiness.ts'
import { Failure } from '../protocol/errors.ts'
import type { EventMap } from '../messaging/events.ts'
import type { Mailbox } from '../storage/mailbox.ts'
import { noMailbox } from '../storage/none.ts'
import { checkOptionNames } from '../protocol/option-names.ts'
import type { Contract, MethodSchemas } from '../protocol/contract.ts'
import type { Handler } from '../gateway/methods.ts'
import type { Typed } from '../gateway/typed.ts'
import { assemble, type NodeParts } from '../gateway/assembly.ts'
import { answerMessage } from '../gateway/builtins.ts'
import { settingsOf, type Options } from '../gateway/options.ts'
import type { SendOptions, SendResult } from '../messaging/dispatcher.ts'
import type { CallOptions, InboundCall } from '../protocol/peer.ts'
import { contextOf } from '../protocol/request-context.ts'
import { RemoteDevice } from './remote-device.ts'
import { clusterLinkLogger, safeLog } from '../gateway/log.ts'
import '../protocol/node-reasons.ts'
import { WorkerEndpoint } from './endpoint.ts'

export interface WorkerOptions {
  /**
   * Joins the worker to the gateways. It is closed with the worker.
   * @default none: this option is required
   */
  backplane: Backplane
  /**
   * The mailbox that the gateways share. Without it the worker sends no message with a `ttl`. It is closed with the worker.
   * @default none
   */
  mailbox?: Mailbox | undefined
  /**
   * What devices and the server may say to each other: the contract of the gateways.
   * @default none
   */
  contract?: Options['contract']
  /**
   * Name of the worker.
   * @default a random name
   */
  node?: string | undefined
  /**
   * A logger with the interface of Fastify's, for example `pino()`. Errors of handlers are reported nowhere else.
   * @default nothing is logged
   */
  log?: FastifyBaseLogger | undefined
  /**
   * Milliseconds that `close()` waits for running handlers.
   * @default 8_000
   */
  drainTimeout?: Options['drainTimeout']
  /**
   * Milliseconds for a device to answer a call that names no timeout.
   * @default 10_000
   */
  callTimeout?: Options['callTimeout']
  /**
   * Longest `ttl` of a message in milliseconds.
   * @default 604_800_000
   */
  maxTtl?: Options['maxTtl']
  /**
   * Maximum number of letters that wait for a device.
   * @default 1_000
   */
  maxLetters?: Options['maxLetters']
  /**
   * Maximum size of all letters that wait for a device, in bytes.
   * @default 1_048_576
   */
  maxLetterBytes?: Options['maxLetterBytes']
  /**
   * Maximum size of the output that waits for a device, in bytes.
   * @default 1_048_576
   */
  maxBuffered?: Options['maxBuffered']
  /**
   * Maximum number of idempotency keys remembered.
   * @default 10_000
   */
  maxKeys?: Options['maxKeys']
  /**
   * Milliseconds for which an idempotency key is remembered.
   * @default 86_400_000
   */
  keyTtl?: Options['keyTtl']
  /**
   * Maximum length of a topic, in characters.
   * @default 255
   */
  maxTopicLength?: Options['maxTopicLength']
  /**
   * Maximum number of levels of a topic.
   * @default 16
   */
  maxTopicLevels?: Options['maxTopicLevels']
}

const OPTION_NAMES: Record<keyof WorkerOptions, true> = {
  backplane: true, mailbox: true, contract: true, node: true, log: true, drainTimeout: true, callTimeout: true, maxTtl: true, maxLetters: true, maxLetterBytes: true,
  maxBuffered: true, maxKeys: true, keyTtl: true, maxTopicLength: true, maxTopicLevels: true
}

/** Messages of devices, and endings of letters that this worker replaced. */
export type WorkerEvents = Omit<EventMap, 'connected' | 'disconnected'>

type AnswerRequest = Extract<WorkerRequest, { kind: 'answer' }>

interface WorkerParts extends NodeParts {
  endpoint: WorkerEndpoint
  /** Resolves once no handler runs any more. */
  close: () => Promise<void>
}

/** Joins a backplane without accepting devices, and answers what devices call at the gateways. */
export async function createWorker (given: WorkerOptions): Promise<Worker> {
  checkOptionNames('createWorker()', given, OPTION_NAMES)
  const { log: logger = silent, ...options } = given
  const log = safeLog(logger)
  const settings = settingsOf(options)
  const { backplane } = options
  const parts = assemble({ settings, mailbox: settings.mailbox ?? noMailbox(), backplane, log })
  const { node, methods, events, devices, dispatcher, letters, readiness } = parts
  methods.handle('message', {}, (params, { device }) => {
    const { data, isNotice } = params as { data: unknown, isNotice: boolean }
    if (!events.hears('message')) throw new Failure('unknown-method')
    if (!isNotice) return answerMessage(events, data, device)
    events.emit('message', data, device) // not awaited: the gateway must not keep a notice for as long as a listener takes
    return {}
  })
  const answer = ({ method, params, connection, turn, context }: AnswerRequest, inbound: InboundCall): unknown =>
    methods.answer(method, params, new RemoteDevice(connection, { devices, dispatcher, log, context }), inbound, context, turn)
  const answerAsOperation = (request: AnswerRequest, inbound: InboundCall): unknown => {
    const facts = { kind: 'work', node, deviceId: request.connection.id, method: request.method, isKnown: methods.has(request.method) } as const
    return operate(facts, request.context, context => answer({ ...request, context: contextOf(context) }, inbound))
  }
  backplane.onLink?.(clusterLinkLogger(log, node))
  backplane.onTrouble?.(error => log.error({ err: error }, 'backplane error'))
  const endpoint = new WorkerEndpoint({
    backplane,
    node,
    log,
    methods: () => methods.names.filter(name => name !== 'message' || events.hears('message')),
    answer: (request, inbound) => operations.hasSubscribers ? answerAsOperation(request, inbound) : answer(request, inbound)
  })
  const close = async () => {
    readiness.close()
    await endpoint.close(settings.drainTimeout)
    dispatcher.close()
    try {
      await letters.close()
    } finally {
      await backplane.close?.()
    }
  }
  await endpoint.open()
  return new Worker({ ...parts, endpoint, close })
}

/** Answers calls of devices, wherever they are connected; sends, calls and broadcasts as `app.devices` does. */
export class Worker {
  readonly #parts: WorkerParts
  #closed: Promise<void> | undefined

  constructor (parts: WorkerParts) {
    this.#parts = parts
  }

  /** Returns this worker, typed by the contract, which is the one of the option `contract`. */
  as<C extends Contract> (contract: C): Typed<this, C> {
    this.#parts.devices.as(contract)
    return this as unknown as Typed<this, C>
  }

  /** Adds a handler for a method that devices call. Several handlers of one method share the connections; each connection stays with one handler. */
  handle<S extends MethodSchemas> (method: string, schemas: S, handler: Handler<S>): this
  handle (method: string, handler: Handler): this
  handle (method: string, ...rest: [Handler] | [MethodSchemas, Handler]): this {
    this.#parts.devices.handle(method, ...rest as [MethodSchemas, Handler])
    this.#parts.endpoint.changed()
    return this
  }

  on<Name extends keyof WorkerEvents> (event: Name, listener: (...args: WorkerEvents[Name]) => void): this {
    this.#parts.devices.on(event, listener)
    this.#parts.endpoint.changed()
    return this
  }

  off<Name extends keyof WorkerEvents> (event: Name, listener: (...args: WorkerEvents[Name]) => void): this {
    this.#parts.devices.off(event, listener)
    this.#parts.endpoint.changed()
    return this
  }

  /** Sends a message to a device on any node. A message with a `ttl` needs the option `mailbox`. */
  async send (deviceId: string, data: unknown, options?: SendOptions): Promise<SendResult> {
    return await this.#parts.devices.send(deviceId, data, options)
  }

  /** Calls a method of a device on any node, and resolves with its result. */
  async call (deviceId: string, method: string, params?: unknown, options?: Omit<CallOptions, 'id'>): Promise<unknown> {
    return await this.#parts.devices.call(deviceId, method, params, options)
  }

  /** Sends a message to all devices, or to the subscribers of a topic. */
  async broadcast (data: unknown, options?: BroadcastOptions): Promise<PublishResult & { id: string }> {
    return await this.#parts.devices.broadcast(data, options)
  }

  /** Subscribes a device to a topic; resolves with all its topics. */
  async join (deviceId: string, topic: string): Promise<string[]> {
    return await this.#parts.devices.join(deviceId, topic)
  }

  async leave (deviceId: string, topic: string): Promise<string[]> {
    return await this.#parts.devices.leave(deviceId, topic)
  }

  /** Closes the connection of a device with a code that asks it not to reconnect. */
  async disconnect (deviceId: string): Promise<void> {
    await this.#parts.devices.disconnect(deviceId)
  }

  /** Details of a device; undefined if it is not connected and no letter waits for it. */
  async get (deviceId: string): Promise<DeviceDetails | undefined> {
    try {
      return await this.#parts.devices.describe(deviceId)
    } catch (error) {
      if (error instanceof Failure && error.reason === 'offline') return undefined
      throw error
    }
  }

  /** The connected devices on all nodes, in the order of their ids. */
  async list (page?: Partial<ListPage>): Promise<Presence[]> {
    return await this.#parts.devices.list(page)
  }

  /** Resolves once the mailbox and the backplane can be used; rejects with `NODE_DRAINING` when the worker closes. */
  async ready (): Promise<void> {
    await this.#parts.devices.ready()
  }

  /** Whether the mailbox and the backplane can be used, and if not, why. Never rejects, and takes a second at most. */
  async health (): Promise<NodeHealth> {
    return await this.#parts.devices.health()
  }

  /** Accepts no new requests, waits for running handlers up to `drainTimeout`, then closes its backplane and mailbox. */
  close (): Promise<void> {
    this.#closed ??= this.#parts.close()
    return this.#closed
  }
}

const silent = Object.fromEntries(['fatal', 'error', 'warn', 'info', 'debug', 'trace'].map(level => [level, () => {}])) as unknown as FastifyBaseLogger

export { Failure, Refusal, type Detail, type FailureOptions, type Reason } from '../protocol/errors.ts'
export type { Backplane, ListPage, Presence, PublishResult } from '../cluster/backplane.ts'
export type { Credentials, DeviceDescription, Device } from '../connection/device.ts'
export type { BroadcastOptions, DeviceDetails } from '../gateway/devices.ts'
export type { NodeHealth } from '../gateway/readiness.ts'
export type { Health } from '../protocol/health.ts'
export type { LetterEvent } from '../messaging/events.ts'
export type { Mailbox } from '../storage/mailbox.ts'
export { contract, type Contract, type MethodSchemas } from '../protocol/contract.ts'
export type { HandlerContext } from '../gateway/handler-context.ts'
export type { Handler } from '../gateway/methods.ts'
export type { SendResult, SendOptions } from '../messaging/dispatcher.ts'
export type { CallOptions } from '../protocol/peer.ts'
export type { RequestLike } from '../protocol/request-context.ts'
