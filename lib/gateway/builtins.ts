import { Type } from '@sinclair/typebox'
import { Failure } from '../protocol/errors.ts'
import type { Events } from '../messaging/events.ts'
import type { BuiltinContext } from './handler-context.ts'
import type { RemoteMethods, Methods } from './methods.ts'
import type { Dispatcher } from '../messaging/dispatcher.ts'
import type { Device } from '../connection/device.ts'
import type { Session } from '../connection/session.ts'
import type { Subscriptions } from '../messaging/subscriptions.ts'
import { isTopic, type TopicLimits } from '../protocol/topics.ts'

/** Decides whether a device may subscribe to a filter, or publish to a topic. */
export type AuthorizeTopic = (device: Device, topic: string, action: 'subscribe' | 'publish') => boolean | Promise<boolean>

const Filters = Type.Object({ topics: Type.Array(Type.String()) })
const Publish = Type.Object({ topic: Type.String(), data: Type.Optional(Type.Unknown()) })
/** A message of another server, which dialled this one or was dialled, has an id. */
const Message = Type.Object({ data: Type.Optional(Type.Unknown()), id: Type.Optional(Type.Unknown()) })

/** A long list of filters costs more of the rate limit than one message. */
const FILTERS_PER_TOKEN = 8

/** Methods of devices that only the server itself calls. */
export const reservedMethods: ReadonlySet<string> = new Set(['message', 'welcome'])

export const builtins: ReadonlySet<string> = new Set(['subscribe', 'unsubscribe', 'publish', 'message', 'ping'])

/** Adds the methods that every device may call, except one whose protocol has none of our methods. */
export function addBuiltins (
  methods: Methods,
  { subscriptions, dispatcher, events, workers, authorizeTopic, topic: limits }:
  { subscriptions: Subscriptions, dispatcher: Dispatcher, events: Events, workers: RemoteMethods, authorizeTopic: AuthorizeTopic, topic: TopicLimits }
): void {
  async function authorize (device: Device, topics: Iterable<string>, action: 'subscribe' | 'publish'): Promise<void> {
    for (const topic of topics) {
      if (await authorizeTopic(device, topic, action) !== true) throw new Failure('forbidden')
    }
  }

  methods.handle('subscribe', { params: Filters }, async ({ topics }, { device }) => {
    charge(device as Session, topics)
    subscriptions.check(device as Session, topics)
    await authorize(device, new Set(topics), 'subscribe')
    subscriptions.join(device as Session, topics)
    await subscriptions.effective()
    return { topics: [...device.topics] }
  }, true)

  methods.handle('unsubscribe', { params: Filters }, ({ topics }, { device }) => {
    charge(device as Session, topics)
    subscriptions.leave(device as Session, topics)
    return { topics: [...device.topics] }
  }, true)

  methods.handle('publish', { params: Publish }, async ({ topic, data = null }, context) => {
    if (!isTopic(topic, limits)) throw new Failure('bad-topic')
    await authorize(context.device, [topic], 'publish')
    await dispatcher.broadcast(data, topic, context.traceparent === undefined ? undefined : context)
    return {}
  }, true)

  methods.handle('message', { params: Message }, ({ data = null, id }, context) => {
    const { device, signal, isNotice } = context as BuiltinContext
    if (events.hears('message received')) events.emit('message received', data, device)
    if (events.hears('message')) return answerMessage(events, data, device)
    if (workers.answers('message')) return workers.answer('message', { data, isNotice }, device, context, isNotice ? undefined : signal)
    // a letter that is refused is lost; after an internal error it is sent again
    throw id === undefined ? new Failure('unknown-method') : new Failure('internal', { message: 'No message listener' })
  }, true)

  // a dialled device may be another server, which sends a welcome of its own
  methods.handle('welcome', {}, () => ({}), true)

  methods.handle('ping', {}, () => ({ now: Date.now() }), true)
}

/** Answers a device's `message` once all listeners have finished. After an error the device may send it again. */
export function answerMessage (events: Events, data: unknown, device: Device): object | Promise<object> {
  const succeeded = events.emit('message', data, device)
  return typeof succeeded === 'boolean' ? acknowledgement(succeeded) : succeeded.then(acknowledgement)
}

function acknowledgement (succeeded: boolean): object {
  if (!succeeded) throw new Failure('internal')
  return {}
}

/** The rate limit has counted the message already, which covers the first filters. */
function charge (session: Session, filters: string[]): void {
  session.bucket.charge(Math.ceil(filters.length / FILTERS_PER_TOKEN) - 1)
}
