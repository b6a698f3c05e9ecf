import { randomBytes } from 'node:crypto'
import type { Device } from '../connection/device.ts'
import type { EventMap, Events } from '../messaging/events.ts'

export type EventType = keyof EventMap

/** An event of a device or a letter, as it leaves the process. */
export interface DeviceEvent {
  /** Unique over all nodes. */
  id: string
  type: EventType
  /** Milliseconds since 1970. */
  at: number
  node: string
  deviceId: string
  /** That of the connection; absent for letters. */
  generation?: number
  data: object
}

type Description = Pick<DeviceEvent, 'deviceId' | 'generation' | 'data'>
type Describe = { [Name in EventType]: (...args: EventMap[Name]) => Description }

const letter = ({ deviceId, id }: EventMap['delivered'][0]): Description => ({ deviceId, data: { letterId: id } })
const connection = ({ id, generation }: Device, data: object): Description => ({ deviceId: id, generation, data })

/** All events; the type makes the compiler find one that is missing. */
const describe: Describe = {
  connected: device => connection(device, { since: device.since, address: device.address, protocol: device.protocol }),
  disconnected: (device, { code, reason }) => connection(device, { since: device.since, code, reason }),
  message: (data, device) => connection(device, data instanceof Uint8Array ? { base64: Buffer.from(data).toString('base64') } : { message: data }),
  delivered: letter,
  expired: letter,
  cancelled: letter,
  replaced: letter,
  refused: letter,
  'dead-lettered': letter,
  damaged: letter
}

export const eventTypes = Object.keys(describe) as EventType[]

/**
 * Calls back with each event on this node that has one of the types; returns a function that ends this. If the listener of a `message` returns a promise,
 * the device gets the answer to its message once that has resolved.
 */
export function listenToEvents (events: Pick<Events, 'on' | 'off'>, node: string, types: Iterable<EventType>, listener: (event: DeviceEvent) => unknown): () => void {
  const prefix = randomBytes(6).toString('base64url')
  let count = 0
  const listeners = new Map([...types].map((type): [EventType, (...args: any) => unknown] => {
    const about = describe[type] as (...args: any) => Description
    return [type, (...args) => listener({ id: `${prefix}-${(++count).toString(36)}`, type, at: Date.now(), node, ...about(...args) })]
  }))
  for (const [type, listener] of listeners) events.on(type, listener)
  return () => {
    for (const [type, listener] of listeners) events.off(type, listener)
  }
}
