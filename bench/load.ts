import { setTimeout as sleep } from 'node:timers/promises'
import { lanes } from '../test/campaigns/campaign.ts'
import { frameOf, opcodes } from '../test/campaigns/raw.ts'
import { Caller, post } from './caller.ts'
import { answer, settingsOfChild } from './child.ts'
import { LoadDevice, type Crowd } from './device.ts'
import { dialects, type DialectName } from './dialects.ts'
import { meter, type Metered, type Spent } from './meter.ts'
import { Tally } from './tally.ts'

// The load side of one candidate: its devices and its callers, in a process of their own.

/** What the load side is told at its start. */
export interface LoadSettings {
  dialect: DialectName
  port: number
  /** Of a node that has none of the devices. */
  otherPort?: number | undefined
  server: Metered
}

/** What was moved, and what that cost. */
export interface Measured extends Spent {
  messages: number
  /** Requests that were answered with an error. */
  refused: number
  /** Milliseconds until the last device had it, or until each had it; sorted. */
  delays: number[]
}

export interface Fanout {
  /** Broadcasts that are published together. */
  burst: number
  /** Bursts that may be on their way at a time. */
  bursts: number
  seconds: number
  /** Bytes of the message. */
  size: number
  topics?: string[]
  /** Milliseconds between two broadcasts; the delay of every message is taken then. */
  pace?: number
}

export interface Rest {
  path: string
  width: number
  seconds: number
  size: number
  /** Messages in one request, as NDJSON. */
  lines?: number
  /** An answer counts, and not what devices receive. */
  byAnswer?: boolean
  /** Asks the node that has none of the devices. */
  elsewhere?: boolean
}

const CONNECTING = 64
const CALLERS = 16
const PATIENCE = 20_000
/** Seconds until a candidate that was idle while others were measured has found its memory again. */
const AWAKE = 0.15
const FLOOD = 4 * 1_048_576
const FLOOD_MESSAGE = 32_768

const { dialect: name, port, otherPort, server }: LoadSettings = settingsOfChild()
const dialect = dialects[name]
const tally = new Tally()
const crowd: Crowd = { port, dialect, tally, heard: undefined }
const devices: LoadDevice[] = []
let stalled = 0

/** A JSON text of so many bytes. */
function message (size: number): string {
  return JSON.stringify({ text: 'x'.repeat(size - '{"text":""}'.length) })
}

async function connect ({ count, topics }: { count: number, topics?: string[] }): Promise<Spent> {
  const spent = meter(server)
  const first = devices.length
  await lanes(count, CONNECTING, async number => {
    devices[first + number] = await LoadDevice.connect(crowd, `device-${first + number}`, topics?.[number % topics.length])
  })
  return spent()
}

/** Publishes each message that is asked for, as the candidate wants it. */
async function publisher (size: number, topics: Array<string | undefined>): Promise<{ publish: () => void, refused: () => number, end: () => void }> {
  const data = message(size)
  let published = 0
  let refused = 0
  if (dialect.publish) {
    const device = await LoadDevice.connect(crowd, 'publisher', 'none')
    const frames = topics.map(topic => dialect.publish!(data, topic))
    return { publish: () => device.write(frames[published++ % frames.length]!), refused: () => refused, end () {} }
  }
  const callers = await Caller.connect(port, CALLERS)
  for (const caller of callers) caller.answered = ok => { if (!ok) refused++ }
  const requests = topics.map(topic => post(topic === undefined ? '/broadcast' : `/broadcast?topic=${topic}`, data))
  return {
    publish: () => callers[published % CALLERS]!.write(requests[published++ % requests.length]!),
    refused: () => refused,
    end: () => { for (const caller of callers) caller.end() }
  }
}

async function fanout ({ burst, bursts, seconds, size, topics, pace }: Fanout): Promise<Measured> {
  const audience = topics ? devices.length / topics.length : devices.length - stalled
  const { publish, refused, end } = await publisher(size, topics ?? [undefined])
  const published = async (burst: number, bursts: number, seconds: number) => {
    const until = performance.now() + seconds * 1_000
    const delays: number[] = []
    let count = 0
    tally.reset(dialect.unit?.(message(size), topics?.[0]))
    if (pace !== undefined) tally.time(delays)
    await within(PATIENCE + seconds * 1_000, () => `${tally.received} of ${count * audience} messages arrived, ${refused()} broadcasts were refused`, resolve => {
      let since = 0
      const go = () => {
        since = performance.now()
        tally.start()
        for (let n = 0; n < burst; n++) publish()
        count += burst
      }
      const next = () => {
        go()
        tally.when((count - burst * (bursts - 1)) * audience, step)
      }
      const step = () => {
        const now = performance.now()
        if (burst * bursts === 1 && pace === undefined) delays.push(now - since)
        if (now >= until) tally.when(count * audience, resolve)
        else if (pace === undefined) next()
        else setTimeout(next, pace - (now - since))
      }
      for (let n = 1; n < bursts; n++) go()
      next()
    })
    return delays
  }
  await published(1, 1, AWAKE)
  const spent = meter(server)
  const delays = await published(burst, bursts, seconds)
  end()
  return { ...spent(), messages: tally.received, refused: refused(), delays: delays.toSorted((a, b) => a - b) }
}

/** Requests side by side, each caller's next when its last is answered. `:id` in the path goes from device to device. */
async function rest ({ path, width, seconds, size, lines, byAnswer = false, elsewhere = false }: Rest): Promise<Measured> {
  const data = message(size)
  const requests = devices.map((_device, at) => {
    if (lines === undefined) return post(path.replace(':id', `device-${at}`), data)
    const to = Array.from({ length: lines }, (_, line) => `device-${(at * lines + line) % devices.length}`)
    return post(path, to.map(id => `{"to":"${id}","data":${data}}\n`).join(''), 'application/x-ndjson')
  })
  const callers = await Caller.connect(elsewhere ? otherPort! : port, width)
  crowd.heard = byAnswer ? heard : undefined
  tally.reset()
  let asked = 0
  let answered = 0
  let refused = 0
  const spent = meter(server)
  const until = performance.now() + seconds * 1_000
  await within(PATIENCE + seconds * 1_000, () => `${answered} of ${asked} requests were answered`, resolve => {
    let busy = width
    for (const caller of callers) {
      const ask = () => caller.write(requests[asked++ % requests.length]!)
      caller.answered = ok => {
        answered++
        if (!ok) refused++
        if (performance.now() < until) ask()
        else if (--busy === 0) resolve()
      }
      ask()
    }
  })
  const messages = (answered - refused) * (lines ?? 1)
  if (!byAnswer) {
    await within(PATIENCE, () => `${tally.received} of ${messages} messages arrived`, resolve => {
      tally.when(messages, resolve)
    })
  }
  for (const caller of callers) caller.end()
  crowd.heard = undefined
  return { ...spent(), messages, refused, delays: [] }
}

function heard (device: LoadDevice, text: string): void {
  const answer = dialect.answer!(text)
  if (answer !== undefined) device.say(answer)
}

/** Devices call, each again when it is answered. */
async function echo ({ width, seconds, size }: { width: number, seconds: number, size: number }): Promise<Measured> {
  const frame = frameOf(opcodes.text, dialect.echo!(message(size)))
  tally.reset()
  const spent = meter(server)
  const until = performance.now() + seconds * 1_000
  await within(PATIENCE + seconds * 1_000, () => `${tally.received} echoes came`, resolve => {
    let busy = width
    crowd.heard = device => {
      if (performance.now() < until) device.write(frame)
      else if (--busy === 0) resolve()
    }
    for (const device of devices.slice(0, width)) device.write(frame)
  })
  crowd.heard = undefined
  return { ...spent(), messages: tally.received, refused: 0, delays: [] }
}

/** The last devices read nothing any more, and are sent more than all buffers on the way hold. */
async function stall ({ count }: { count: number }): Promise<void> {
  const [caller] = await Caller.connect(port, 1) as [Caller]
  for (const [at, device] of devices.entries()) {
    if (at < devices.length - count) continue
    device.stall()
    for (let sent = 0; sent < FLOOD; sent += FLOOD_MESSAGE) {
      await new Promise(resolve => {
        caller.answered = resolve
        caller.write(post(`/devices/device-${at}/messages`, message(FLOOD_MESSAGE)))
      })
    }
  }
  caller.end()
  stalled = count
}

async function within (milliseconds: number, state: () => string, work: (resolve: () => void) => void): Promise<void> {
  const deadline = new AbortController()
  const late = sleep(milliseconds, undefined, { signal: deadline.signal }).then(() => { throw new Error(`${name}: ${state()}`) })
  await Promise.race([new Promise<void>(work), late]).finally(() => deadline.abort())
}

answer({ connect, fanout, rest, echo, stall })
