import type { Detail } from '../../protocol/errors.ts'
import type { RequestContext } from '../../protocol/request-context.ts'
import { sizeOf, type Ending, type Letter, type Receipt } from '../mailbox.ts'
import type { Batch } from './batch.ts'

/** A letter, waiting or ended. */
export interface Entry extends Omit<Receipt, 'device'> {
  readonly position: number
  readonly attempts: number
  readonly device?: Detail | undefined
  /** Present while the letter waits. */
  readonly body?: string | Uint8Array
  /** Present while the letter waits, if a request caused it. */
  readonly context?: RequestContext | undefined
}

/** The entry of a waiting letter. */
export type Waiting = Entry & Required<Pick<Entry, 'body'>>

/** The place of a waiting letter: enough to count and order it without its entry. */
export interface Place {
  readonly deviceId: string
  readonly position: number
  readonly id: string
  readonly size: number
  readonly collapse: string | undefined
}

export const formatKey = 'format'
/** The record of the highest position so far. */
export const positionKey = 'position'
/** The record that exists from when damage is found until all entries have been checked. */
export const suspectKey = 'suspect'

// ids contain no `!`; `"` is the next character
export const entryKey = (deviceId: string, letterId: string) => `r!${deviceId}!${letterId}`
/** Key of the place of a waiting letter; places sort in the order of letters. */
export const placeKey = (deviceId: string, position: number) => `l!${deviceId}!${padded(position)}`
/** Key of the list of what is due in one slot of time. */
export const dueList = (at: number) => `d!${padded(Math.floor(at / SLOT_MS))}`

const DIGITS = 16
const NEWLINE = 10
/** Lists are read as a whole, so the sweep reads at most this far ahead. */
const SLOT_MS = 100

function padded (number: number): string {
  return String(number).padStart(DIGITS, '0')
}

export function placesBehind (deviceId: string, after: number): [gte: string, lt: string] {
  return [placeKey(deviceId, after + 1), `l!${deviceId}"`]
}

export function encodePlace ({ id, size, collapse }: Entry): string {
  return collapse === undefined ? `${id}!${size}` : `${id}!${size}!${collapse}`
}

export function decodePlace (key: string, value: Uint8Array): Place {
  const text = textOf(value)
  const first = text.indexOf('!')
  const second = text.indexOf('!', first + 1)
  return {
    deviceId: key.slice(2, -DIGITS - 1),
    position: Number(key.slice(-DIGITS)),
    id: text.slice(0, first),
    size: Number(text.slice(first + 1, second === -1 ? undefined : second)),
    collapse: second === -1 ? undefined : text.slice(second + 1)
  }
}

/** Writes an entry, its place and its item in a list of what is due. An ended letter has no place; its entry stays as its receipt. */
export function fillIn (batch: Batch, key: string, deviceId: string, entry: Entry, dueAt: number): void {
  const place = placeKey(deviceId, entry.position)
  batch.put(key, encodeEntry(entry))
  if (entry.status === 'queued') batch.put(place, encodePlace(entry))
  else batch.del(place)
  batch.list(dueList(dueAt), dueItem(deviceId, entry.id))
}

/** The key range of the lists up to a time. */
export function dueUntil (at: number): [gte: string, lt: string] {
  return ['d!', `${dueList(at)}"`]
}

export const dueItem = (deviceId: string, letterId: string) => `${deviceId}!${letterId}`

export function decodeDue (value: Uint8Array): Array<[deviceId: string, letterId: string]> {
  return textOf(value).split('\n').map(item => item.split('!') as [string, string])
}

export function entryOf ({ id, expiresAt, body, collapse, digest, awaitedBy, context }: Letter, position: number): Waiting {
  return { id, status: 'queued', at: Date.now(), expiresAt, size: sizeOf(body), position, attempts: 0, collapse, digest, awaitedBy, context, body }
}

export function endedOf ({ id, expiresAt, size, position, attempts, collapse, digest, awaitedBy }: Entry, status: Ending, device?: Detail): Entry {
  return { id, status, at: Date.now(), expiresAt, size, position, attempts, collapse, digest, awaitedBy, device }
}

/** The entry of a letter of which only the place is left. */
export function lostOf (id: string, position: number): Entry {
  const now = Date.now()
  return { id, status: 'damaged', at: now, expiresAt: now, size: 0, position, attempts: 0 }
}

export function receiptOf ({ id, status, at, expiresAt, size, collapse, digest, awaitedBy, device }: Entry): Receipt {
  const receipt: { -readonly [Member in keyof Receipt]: Receipt[Member] } = { id, status, at, expiresAt, size }
  if (collapse !== undefined) receipt.collapse = collapse
  if (digest !== undefined) receipt.digest = digest
  if (awaitedBy !== undefined) receipt.awaitedBy = awaitedBy
  if (device !== undefined) receipt.device = device
  return receipt
}

/** A line of JSON without absent members and what the key contains, followed by the raw body. */
export function encodeEntry ({ status, at, expiresAt, size, position, attempts, collapse, digest, awaitedBy, context, device, body }: Entry): string | Uint8Array {
  const isBytes = body instanceof Uint8Array
  const head = JSON.stringify({ status, at, expiresAt, size, position, attempts: attempts || undefined, collapse, digest, awaitedBy, context, device, isBytes: isBytes || undefined })
  if (body === undefined) return head
  return isBytes ? Buffer.concat([Buffer.from(`${head}\n`), body]) : `${head}\n${body}`
}

export function decodeEntry (key: string, value: Uint8Array): { deviceId: string, entry: Entry } {
  const [, deviceId, id] = key.split('!') as [string, string, string]
  const end = value.indexOf(NEWLINE)
  const { isBytes, ...known } = JSON.parse(textOf(end === -1 ? value : value.subarray(0, end)))
  const entry = { id, attempts: 0, ...known }
  if (end === -1) return { deviceId, entry }
  const body = value.subarray(end + 1)
  return { deviceId, entry: { ...entry, body: isBytes ? body : textOf(body) } }
}

function textOf ({ buffer, byteOffset, length }: Uint8Array): string {
  return Buffer.from(buffer, byteOffset, length).toString()
}
