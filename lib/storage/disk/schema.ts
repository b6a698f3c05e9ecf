import type { Detail } from '../../protocol/errors.ts'
import { sizeOf, type Ending, type Letter, type Receipt } from '../mailbox.ts'
import type { Batch } from './batch.ts'

/** What is known of a letter, of one that is done with too. */
export interface Entry extends Omit<Receipt, 'device'> {
  readonly position: number
  readonly strikes: number
  readonly device?: Detail | undefined
  /** As long as it waits. */
  readonly body?: string | Uint8Array
}

/** The entry of a letter that waits, which is the letter too. */
export type Waiting = Entry & Required<Pick<Entry, 'body'>>

/** What is known of a letter from its place alone: enough to count it. */
export interface Place {
  readonly deviceId: string
  readonly position: number
  readonly id: string
  readonly size: number
  readonly collapse: string | undefined
}

export const formatKey = 'format'
/** The record of the highest position given so far. */
export const positionKey = 'position'
/** The record that is there while damage was found and not everything was checked since. */
export const suspectKey = 'suspect'

// no id holds a `!`, and `"` is the character behind it
export const entryKey = (deviceId: string, letterId: string) => `r!${deviceId}!${letterId}`
/** Where the id of a letter that waits stands, in the order of the letters. */
export const placeKey = (deviceId: string, position: number) => `l!${deviceId}!${padded(position)}`
/** The list of all that is due in one slot of time. */
export const dueList = (at: number) => `d!${padded(Math.floor(at / SLOT_MS))}`

const DIGITS = 16
const NEWLINE = 10
/** A list is read as a whole, so the sweep reads at most this far ahead of its time. */
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

/** Writes an entry, its place and when it is due. The place goes once the letter is done with; the entry stays for a while as its receipt. */
export function fillIn (batch: Batch, key: string, deviceId: string, entry: Entry, dueAt: number): void {
  const place = placeKey(deviceId, entry.position)
  batch.put(key, encodeEntry(entry))
  if (entry.status === 'queued') batch.put(place, encodePlace(entry))
  else batch.del(place)
  batch.list(dueList(dueAt), dueItem(deviceId, entry.id))
}

/** The records of lists up to a time. */
export function dueUntil (at: number): [gte: string, lt: string] {
  return ['d!', `${dueList(at)}"`]
}

export const dueItem = (deviceId: string, letterId: string) => `${deviceId}!${letterId}`

export function decodeDue (value: Uint8Array): Array<[deviceId: string, letterId: string]> {
  return textOf(value).split('\n').map(item => item.split('!') as [string, string])
}

export function entryOf ({ id, expiresAt, body, collapse, digest, awaitedBy }: Letter, position: number): Waiting {
  return { id, status: 'queued', at: Date.now(), expiresAt, size: sizeOf(body), position, strikes: 0, collapse, digest, awaitedBy, body }
}

export function endedOf ({ id, expiresAt, size, position, strikes, collapse, digest, awaitedBy }: Entry, status: Ending, device?: Detail): Entry {
  return { id, status, at: Date.now(), expiresAt, size, position, strikes, collapse, digest, awaitedBy, device }
}

/** Of a letter of which no more is left than its id and its place. */
export function lostOf (id: string, position: number): Entry {
  const now = Date.now()
  return { id, status: 'damaged', at: now, expiresAt: now, size: 0, position, strikes: 0 }
}

export function receiptOf ({ id, status, at, expiresAt, size, collapse, digest, awaitedBy, device }: Entry): Receipt {
  const receipt: { -readonly [Member in keyof Receipt]: Receipt[Member] } = { id, status, at, expiresAt, size }
  if (collapse !== undefined) receipt.collapse = collapse
  if (digest !== undefined) receipt.digest = digest
  if (awaitedBy !== undefined) receipt.awaitedBy = awaitedBy
  if (device !== undefined) receipt.device = device
  return receipt
}

/** One line of JSON without what the key tells or most letters do not have, and behind it the body as it is. */
export function encodeEntry ({ status, at, expiresAt, size, position, strikes, collapse, digest, awaitedBy, device, body }: Entry): string | Uint8Array {
  const isBytes = body instanceof Uint8Array
  const head = JSON.stringify({ status, at, expiresAt, size, position, strikes: strikes || undefined, collapse, digest, awaitedBy, device, isBytes: isBytes || undefined })
  if (body === undefined) return head
  return isBytes ? Buffer.concat([Buffer.from(`${head}\n`), body]) : `${head}\n${body}`
}

export function decodeEntry (key: string, value: Uint8Array): { deviceId: string, entry: Entry } {
  const [, deviceId, id] = key.split('!') as [string, string, string]
  const end = value.indexOf(NEWLINE)
  const { isBytes, ...known } = JSON.parse(textOf(end === -1 ? value : value.subarray(0, end)))
  const entry = { id, strikes: 0, ...known }
  if (end === -1) return { deviceId, entry }
  const body = value.subarray(end + 1)
  return { deviceId, entry: { ...entry, body: isBytes ? body : textOf(body) } }
}

function textOf ({ buffer, byteOffset, length }: Uint8Array): string {
  return Buffer.from(buffer, byteOffset, length).toString()
}
