/** What a caller does over REST: the name of the method of `app.devices` that the route calls, or what it reads. */
export type Action =
  'list' | 'describe' | 'disconnect' | 'send' | 'call' | 'broadcast' | 'join' | 'leave' | 'letters' | 'receipt' | 'cancel' | 'purge' | 'asyncapi' |
  'events' | 'metrics' | 'console' | 'webhooks'

/** One thing that a caller asks for. */
export interface Operation {
  action: Action
  /** Undefined for actions that are not about one device. */
  deviceId?: string
  /** The filter of `join` and `leave`, or the topic of `list` and `broadcast` if the caller gave one. */
  topic?: string | undefined
  /** The method of `call`. */
  method?: string
  /** The beginning of the ids to `list`, if the caller gave one. */
  prefix?: string | undefined
}

/** Decides whether a caller may do something over REST. `caller` is the object that `guard` returned; undefined if it returned `true`. */
export type Authorize = (caller: any, operation: Operation) => boolean | Promise<boolean>
