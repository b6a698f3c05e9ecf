import { isDeepStrictEqual } from 'node:util'
import type { FastifyBaseLogger } from 'fastify'
import { answerOf, valueOf, type Answer, type Presence, type SessionRequest } from '../cluster/backplane.ts'
import { factsOf, offerMessage, requestDevice } from '../connection/device-operations.ts'
import { operate, operations } from '../connection/operation.ts'
import type { OutboundChecks } from '../connection/outbound-checks.ts'
import type { Session } from '../connection/session.ts'
import type { SessionServer } from '../connection/session-host.ts'
import { contextOf, type RequestContext } from '../protocol/request-context.ts'
import type { Subscriptions } from './subscriptions.ts'

/** A request that another request has caused. */
type CausedRequest = Extract<SessionRequest, { context?: unknown }>

/** A confirmed message in flight. */
interface PendingConfirmation {
  data: unknown
  acknowledged: Promise<unknown>
}

/** Serves the requests of all nodes to the device of one session. */
export class SessionOwner implements SessionServer {
  readonly #session: Session
  readonly #subscriptions: Subscriptions
  readonly #log: FastifyBaseLogger
  readonly #checks: OutboundChecks | undefined
  /** By message id. */
  readonly #confirmations = new Map<string, PendingConfirmation>()

  constructor (session: Session, subscriptions: Subscriptions, log: FastifyBaseLogger, checks: OutboundChecks | undefined) {
    this.#session = session
    this.#subscriptions = subscriptions
    this.#log = log
    this.#checks = checks
  }

  get presence (): Omit<Presence, 'generation'> {
    const { id, node, since } = this.#session
    return { deviceId: id, node, since }
  }

  listensTo (topic: string): boolean {
    return this.#subscriptions.listens(this.#session, topic)
  }

  confirmAlive (): Promise<void> {
    return this.#session.confirmAlive()
  }

  yield (): void {
    this.#session.end('replaced')
  }

  answer (request: SessionRequest, signal?: AbortSignal): Promise<Answer> {
    return operations.hasSubscribers && 'context' in request ? this.#serveAsOperation(request, signal) : this.serve(request, signal)
  }

  async serve (request: SessionRequest, signal?: AbortSignal): Promise<Answer> {
    const entered = this.#session.entered()
    if (entered) await entered
    const answer: Answer = this.#session.left ? { ok: false, reason: 'dropped' } : await answerOf(() => this.#serve(request, signal))
    if ('context' in request && request.context) this.#logAnswer(request.kind, request.context, answer)
    return answer
  }

  /** The failure of an operation is what it throws. */
  #serveAsOperation (request: CausedRequest, signal: AbortSignal | undefined): Promise<Answer> {
    const facts = { kind: 'serve', ...factsOf(this.#session), method: request.kind, isKnown: true } as const
    return answerOf(() => operate(facts, request.context, async context => valueOf(await this.serve({ ...request, context: contextOf(context) }, signal))))
  }

  #logAnswer (kind: SessionRequest['kind'], { id: reqId }: RequestContext, answer: Answer): void {
    this.#log.debug({ reqId, deviceId: this.#session.id, kind, reason: answer.ok ? undefined : answer.reason }, 'request to device answered')
  }

  async #serve (request: SessionRequest, signal?: AbortSignal): Promise<unknown> {
    const session = this.#session
    switch (request.kind) {
      case 'send': return await offerMessage(session, request.id, request.data, request.context)
      case 'confirm': return await this.#confirm(request, signal)
      case 'call': return await requestDevice(session, request.method, request.params, { timeout: request.timeout, signal, request: request.context }, this.#checks)
      case 'wake': return session.wake()
      case 'describe': return session.describe()
      case 'end': return session.end('removed')
      case 'join': return await this.#join(request.topic)
      case 'leave': return this.#leave(request.topic)
      case 'renew': return this.#renew(request.generation, request.expiresAt)
    }
  }

  /** A repeated message, such as a retry over another node, joins the one in flight. */
  async #confirm ({ id, data, timeout, context }: SessionRequest & { kind: 'confirm' }, signal?: AbortSignal): Promise<unknown> {
    const first = this.#confirmations.get(id)
    if (first && isDeepStrictEqual(first.data, data)) return await first.acknowledged
    const { method, params, ...options } = this.#session.callFor(id, data)
    const acknowledged = requestDevice(this.#session, method, params, { ...options, timeout, signal, request: context }, this.#checks)
    if (first) return await acknowledged
    this.#confirmations.set(id, { data, acknowledged })
    try {
      return await acknowledged
    } finally {
      this.#confirmations.delete(id)
    }
  }

  async #join (filter: string): Promise<string[]> {
    this.#subscriptions.join(this.#session, [filter])
    await this.#subscriptions.effective()
    return [...this.#session.topics]
  }

  #leave (filter: string): string[] {
    this.#subscriptions.leave(this.#session, [filter])
    return [...this.#session.topics]
  }

  /** Ignored if a newer connection has the device: the request was meant for an older one. */
  #renew (generation: number, expiresAt: number): void {
    if (generation === this.#session.generation) this.#session.renew(expiresAt)
  }
}
