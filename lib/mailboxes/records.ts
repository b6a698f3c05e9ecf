import type { Detail } from '../errors.ts'
import { sizeOf, type Ending, type Kept, type Letter, type Receipt } from '../mailbox.ts'
import type { Item } from './journal.ts'

/** What is known of a letter, of one that is done with too. */
export interface Entry extends Receipt {
  readonly position: number
  readonly strikes: number
}

export const formatKey = 'format'

// no id holds a `!`, and `"` is the character behind it
export const letterKey = (deviceId: string, position: number) => `l!${deviceId}!${padded(position)}`
export const entryKey = (deviceId: string, letterId: string) => `r!${deviceId}!${letterId}`
/** The list of all that is due in one second. */
export const dueList = (at: number) => `d!${padded(Math.floor(at / 1_000))}`

const DIGITS = 16
const NEWLINE = 10

function padded (number: number): string {
  return String(number).padStart(DIGITS, '0')
}

export function lettersBehind (deviceId: string, after: number): [gte: string, lt: string] {
  return [letterKey(deviceId, after + 1), `l!${deviceId}"`]
}

export function dueOf (deviceId: string, letterId: string, at: number): Item {
  return { list: dueList(at), item: `${deviceId}!${letterId}` }
}

/** The records of lists up to a time. */
export function dueUntil (at: number): [gte: string, lt: string] {
  return ['d!', `${dueList(at)}"`]
}

export function decodeDue (value: Uint8Array): Array<[deviceId: string, letterId: string]> {
  return textOf(value).split('\n').map(item => item.split('!') as [string, string])
}

export function entryOf (letter: Kept): Entry {
  const { id, expiresAt, position, body } = letter
  return { id, status: 'queued', at: Date.now(), expiresAt, size: sizeOf(body), position, strikes: 0, ...optional(letter) }
}

export function endedOf (entry: Entry, status: Ending, device?: Detail): Entry {
  return { ...entry, status, at: Date.now(), ...(device && { device }) }
}

export function receiptOf (entry: Entry): Receipt {
  const { id, status, at, expiresAt, size, device } = entry
  const receipt = { id, status, at, expiresAt, size, ...optional(entry) }
  return device ? { ...receipt, device } : receipt
}

type Optional = Pick<Letter, 'collapse' | 'digest' | 'awaitedBy'>

function optional ({ collapse, digest, awaitedBy }: Optional): Optional {
  if (collapse === undefined && digest === undefined && awaitedBy === undefined) return none // like most letters
  return { ...(collapse !== undefined && { collapse }), ...(digest !== undefined && { digest }), ...(awaitedBy !== undefined && { awaitedBy }) }
}

const none: Optional = {}

export function encodeEntry (entry: Entry): string {
  return JSON.stringify(entry)
}

export function decodeEntry (key: string, value: Uint8Array): { deviceId: string, entry: Entry } {
  const [, deviceId] = key.split('!') as [string, string]
  return { deviceId, entry: JSON.parse(textOf(value)) }
}

/** One line of JSON, then the body as it is; the device and the position are in the key. */
export function encodeLetter ({ id, expiresAt, collapse, digest, awaitedBy, body }: Letter): string | Uint8Array {
  const isText = typeof body === 'string'
  const head = `${JSON.stringify({ id, expiresAt, collapse, digest, awaitedBy, isText })}\n`
  return isText ? head + body : Buffer.concat([Buffer.from(head), body])
}

export function decodeLetter (key: string, value: Uint8Array): { deviceId: string, letter: Kept } {
  const [, deviceId, position] = key.split('!') as [string, string, string]
  const end = value.indexOf(NEWLINE)
  const { isText, ...letter } = JSON.parse(textOf(value.subarray(0, end)))
  const body = value.subarray(end + 1)
  return { deviceId, letter: { ...letter, position: Number(position), body: isText ? textOf(body) : body } }
}

function textOf ({ buffer, byteOffset, length }: Uint8Array): string {
  return Buffer.from(buffer, byteOffset, length).toString()
}
