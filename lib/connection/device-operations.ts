import type { CallOptions } from '../protocol/peer.ts'
import type { RequestLike } from '../protocol/request-context.ts'
import { operate, operations, type OperationFacts } from './operation.ts'
import type { OutboundChecks } from './outbound-checks.ts'

/** As much of a session as its operations need. */
interface ConnectedDevice {
  readonly id: string
  readonly node: string
  readonly protocol: string
}

interface CallableDevice extends ConnectedDevice {
  request (method: string, params?: unknown, options?: CallOptions): Promise<unknown>
}

interface WritableDevice extends ConnectedDevice {
  offer (id: string, data: unknown, request?: RequestLike): Promise<void> | undefined
}

/** What an operation of a connection says about its device. */
export function factsOf ({ id, node, protocol }: ConnectedDevice): Pick<OperationFacts, 'node' | 'deviceId' | 'protocol'> {
  return { node, deviceId: id, protocol }
}

/** Calls a method of a device that is connected to this node. */
export function requestDevice (device: CallableDevice, method: string, params: unknown, options: CallOptions | undefined, checks: OutboundChecks | undefined): Promise<unknown> {
  if (!operations.hasSubscribers) return device.request(method, params, options)
  return requestAsOperation(device, method, params, options, method === 'message' || checks?.declares(method) === true)
}

/** Sends a message to a device that is connected to this node, at once or when there is room for it. */
export function offerMessage (device: WritableDevice, id: string, data: unknown, request: RequestLike | undefined): Promise<void> | undefined {
  return operations.hasSubscribers ? offerAsOperation(device, id, data, request) : device.offer(id, data, request)
}

/** The request that causes a message which is written at once; undefined without a subscriber, because such a message has no request of its own. */
export function requestOfMessage (device: ConnectedDevice, messageId: string): RequestLike | undefined {
  return operations.hasSubscribers ? operate({ kind: 'notify', ...factsOf(device), method: 'message', isKnown: true, messageId }, undefined, request => request) : undefined
}

// closures of their own: in the functions above each call would allocate what they capture

function requestAsOperation (device: CallableDevice, method: string, params: unknown, options: CallOptions | undefined, isKnown: boolean): Promise<unknown> {
  return operate({ kind: 'request', ...factsOf(device), method, isKnown }, options?.request, request => device.request(method, params, { ...options, request }))
}

function offerAsOperation (device: WritableDevice, messageId: string, data: unknown, request: RequestLike | undefined): Promise<void> | undefined {
  return operate({ kind: 'notify', ...factsOf(device), method: 'message', isKnown: true, messageId }, request, request => device.offer(messageId, data, request))
}
