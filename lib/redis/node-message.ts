import type { Answer, ListPage, Presence, Request } from '../cluster/backplane.ts'
import type { ProbeResult } from '../cluster/liveness-probe.ts'

/** A message on the channel of a node. */
export type NodeMessage =
  /** A request to the owner of a device. */
  | Request & { type: 'request', from: string, nonce: string, deviceId: string }
  /** The caller of a request has given up. */
  | { type: 'cancel', nonce: string }
  /** Is this request still being worked on? */
  | { type: 'probe', from: string, nonce: string, about: string }
  | { type: 'list', from: string, nonce: string, page: ListPage }
  | Reply
  /** A newer connection, of the given generation, owns the device. */
  | { type: 'yield', deviceId: string, generation: number }
  /** The numbers of devices that publications of this node were sent to, by their nonces; null: none listens. */
  | { type: 'counts', counts: Array<[nonce: string, sent: number | null]> }
  /** The node hears itself. */
  | { type: 'beat' }

export type Reply = { type: 'reply', nonce: string } & ReplyContent

export type ReplyContent =
  /** The answer of the owner. */
  | Answer
  /** The node does not have the device, or no longer. */
  | { hasMoved: true }
  | { state: ProbeResult }
  | { page: Presence[] }

export const nodeChannel = (node: string): string => `node:${node}`
export const CHANGES = 'changes'
