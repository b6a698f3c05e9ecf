import { jsonrpc } from '../../lib/protocol/jsonrpc.ts'
import { ocpp } from '../../lib/protocol/ocpp.ts'
import type { Codec, Message } from '../../lib/protocol/message.ts'
import { isMessage } from '../contracts/codec.ts'
import { seededRandom, command, Verdict, type Outcome } from './campaign.ts'

/**
 * Mutated frames for every codec: `decode` returns messages or `invalid`, never throws and never blocks the process, and `encode` accepts
 * what was decoded.
 */
export async function fuzz ({ frames, seed, stall = 10 }: { frames: number, seed: number, stall?: number }): Promise<Outcome> {
  const next = seededRandom(seed)
  const below = (limit: number) => Math.floor(next() * limit)
  const verdict = new Verdict()
  const codecs = [jsonrpc(), jsonrpc({ bytes: 'base64' }), ...ocpp()]
  const good = codecs.map(examplesOf)
  let readable = 0
  let slowest = 0

  for (let count = 0; count < frames && verdict.wrong.length < 10; count++) {
    const at = count % codecs.length
    const codec = codecs[at]!
    const bytes = mutate(good[below(10) === 0 ? below(good.length) : at]!, below)
    const frame = below(2) === 0 ? bytes : bytes.toString()
    try {
      const decoded = codec.decode(frame)
      const messages = Array.isArray(decoded) ? decoded : [decoded]
      if (!messages.every(isMessage)) verdict.holds(`${codec.subprotocol} makes no message of ${excerpt(frame)}`, false)
      if (messages.every(({ kind }) => kind !== 'invalid')) {
        readable++
        if (codec.encode(decoded) === undefined && !isUnaddressed(decoded)) verdict.holds(`${codec.subprotocol} cannot write ${excerpt(frame)}`, false)
      }
    } catch (error) {
      verdict.holds(`${codec.subprotocol} throws ${(error as Error).message} for ${excerpt(frame)}`, false)
    }
    const took = decodeMs(codec, frame, stall)
    slowest = Math.max(slowest, took)
    if (took > stall) verdict.holds(`${codec.subprotocol} takes ${took} ms for ${excerpt(frame)}`, false)
  }
  verdict.holds('the tampering leaves a tenth that can be read', readable >= frames / 10)
  return {
    line: `${frames} frames, ${readable} of them readable, through ${codecs.length} codecs: the slowest took ${slowest.toFixed(2)} ms (seed ${seed})`,
    wrong: verdict.wrong
  }
}

/** A failure without an id need not be encodable. */
function isUnaddressed (message: Message | Message[]): boolean {
  return !Array.isArray(message) && message.kind === 'failure' && message.id === null
}

const REPETITIONS = 10

/** Milliseconds to decode a frame. A slow result is measured again by CPU time, as the machine may have been busy. */
function decodeMs (codec: Codec, frame: string | Uint8Array, enough: number): number {
  const start = performance.now()
  codec.decode(frame)
  let least = performance.now() - start
  const again = least > enough / 4 ? REPETITIONS : 0
  for (let count = 0; count < again; count++) {
    const before = process.cpuUsage()
    codec.decode(frame)
    const { user, system } = process.cpuUsage(before)
    least = Math.min(least, (user + system) / 1_000)
  }
  return least
}

const fragments = [
  '"', '{', '}', '[', ']', ',', ':', 'null', '-1', '1e999', '"id":1', '"result":', '"error":', '\\ud800', '\n', '"__proto__":', '"base64":"AA=="', ' ',
  '[2,', '[3,', '[4,', '[5,', '[6,', '[7,', '"-1"', '"Reset"', 'x'.repeat(300), '['.repeat(300), '{"a":'.repeat(40)
].map(piece => Buffer.from(piece))

function mutate (good: Buffer[], below: (limit: number) => number): Buffer {
  let bytes = good[below(good.length)]!
  for (let edits = below(4); edits > 0; edits--) {
    const at = below(bytes.length + 1)
    const piece = below(4) === 0 ? Buffer.of(below(256)) : fragments[below(fragments.length)]!
    bytes = Buffer.concat([bytes.subarray(0, at), piece, bytes.subarray(at + below(3))])
  }
  return bytes
}

/** Frames that the codec encodes, and hard ones: the longest that is accepted by default, deeply nested. */
function examplesOf (codec: Codec): Buffer[] {
  const params = { list: [1, { two: 2.5 }], text: 'ü€😀', none: null }
  const messages: Message[] = [
    { kind: 'call', id: 'a1', method: 'read', params },
    { kind: 'call', id: 'a2', method: 'write', params: { data: Uint8Array.of(0, 10, 255) } },
    { kind: 'notice', method: 'tell', params },
    { kind: 'result', id: 'a1', result: params },
    { kind: 'result', id: 'a1', result: { data: new Uint8Array(100) } },
    { kind: 'failure', id: 'a1', reason: 'unknown-method' },
    { kind: 'failure', id: 'a1', reason: 'refused', detail: { code: 42, message: 'no', data: { why: 1 } } },
    { kind: 'failure', id: null, reason: 'unreadable' }
  ]
  const frames = messages.map(message => codec.encode(message)).filter(frame => frame !== undefined)
  return [...frames, ...frames, ...frames, '[2,"a1","Reset",null]', `[${'['.repeat(30_000)}${']'.repeat(30_000)}]`].map(frame => Buffer.from(frame))
}

function excerpt (frame: string | Uint8Array): string {
  return JSON.stringify(frame.toString().slice(0, 200))
}

await command(import.meta.url, { frames: 1_000_000, seed: Date.now() }, fuzz)
