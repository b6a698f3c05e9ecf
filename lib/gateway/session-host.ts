import type { FastifyBaseLogger } from 'fastify'
import { factsOf } from '../connection/device-operations.ts'
import type { FlushScheduler } from '../connection/flush-scheduler.ts'
import { operate, operations } from '../connection/operation.ts'
import type { OutboundChecks } from '../connection/outbound-checks.ts'
import type { Registry } from '../connection/registry.ts'
import type { Session } from '../connection/session.ts'
import type { SessionHost } from '../connection/session-host.ts'
import type { Stats } from '../connection/stats.ts'
import type { Delivery } from '../messaging/delivery.ts'
import type { Events } from '../messaging/events.ts'
import type { Subscriptions } from '../messaging/subscriptions.ts'
import type { Call, Codec, Notice } from '../protocol/message.ts'
import { isThenable, type InboundCall, type PeerLimits } from '../protocol/peer.ts'
import { contextOf } from '../protocol/request-context.ts'
import { InboundNotice } from './handler-context.ts'
import type { Methods } from './methods.ts'
import type { Settings } from './options.ts'

interface SessionHostParts {
  node: string
  settings: Settings
  stats: Stats
  flushScheduler: FlushScheduler
  log: FastifyBaseLogger
  methods: Methods
  registry: Registry
  delivery: Delivery
  subscriptions: Subscriptions
  events: Events
  checks: OutboundChecks | undefined
}

/** What the sessions of a node share: its limits, its methods, its letters, and the clean-up when one of them ends. */
export function sessionHost ({ node, settings, stats, flushScheduler, log, methods, registry, delivery, subscriptions, events, checks }: SessionHostParts): SessionHost<Session> {
  const peerLimits = new WeakMap<Codec, PeerLimits>()
  const declared = settings.contract?.methods ?? {}

  function answerMethod (session: Session, request: Call | Notice, inbound: InboundCall): unknown {
    const { method, params, trace } = request
    if (!operations.hasSubscribers) return methods.answer(method, params, session, inbound, trace)
    return answerAsOperation(methods, session, request, inbound, methods.has(method) || Object.hasOwn(declared, method))
  }

  return {
    node,
    limits: settings,
    stats,
    flushScheduler,
    log,
    checks,

    peerLimits (codec) {
      const limits = peerLimits.get(codec)
      if (limits) return limits
      const created = peerLimitsOf(codec, settings)
      peerLimits.set(codec, created)
      return created
    },

    answer (session, request, inbound) {
      if (request.kind !== 'notice' || request.method !== 'message') return answerMethod(session, request, inbound)
      const answer = answerMethod(session, request, new InboundNotice())
      if (!isThenable(answer)) return answer
      // a notice gets no answer, so it does not count as a call in flight
      answer.then(undefined, () => {})
      return undefined
    },

    onClosed (session) {
      const wasRegistered = registry.leave(session)
      delivery.stop(session)
      subscriptions.drop(session)
      if (!wasRegistered) return
      log.info({ deviceId: session.id, generation: session.generation, code: session.left!.code }, 'device disconnected')
      events.emit('disconnected', session, session.left!)
    },

    wake: session => delivery.wake(session)
  }
}

function answerAsOperation (methods: Methods, session: Session, { method, params, trace }: Call | Notice, inbound: InboundCall, isKnown: boolean): unknown {
  const facts = { kind: 'answer', ...factsOf(session), method, isKnown } as const
  return operate(facts, trace, request => methods.answer(method, params, session, inbound, contextOf(request)))
}

function peerLimitsOf ({ concurrency, mint }: Codec, { maxCalls, callTimeout }: Settings): PeerLimits {
  return { concurrency, maxInbound: maxCalls, nextId: mint, lingerMs: concurrency === Infinity ? undefined : callTimeout }
}
