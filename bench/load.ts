import { setTimeout as sleep } from 'node:timers/promises'
import { lanes } from '../test/campaigns/campaign.ts'
import { frameOf, opcodes } from '../test/campaigns/raw.ts'
import { Caller, post } from './caller.ts'
import { serveCommands, childSettings } from './child.ts'
import { LoadDevice, type DeviceGroup } from './device.ts'
import { dialects, type DialectName } from './dialects.ts'
import { meter, type Metered, type Usage } from './meter.ts'
import { ReceiveCounter } from './receive-counter.ts'

// The load generator of one candidate: its devices and its callers, in a process of their own.

export interface LoadSettings {
  dialect: DialectName
  port: number
  /** The port of a node that has no devices. */
  otherPort?: number | undefined
  server: Metered
}

/** The messages of a measurement, and what they cost. */
export interface Measured extends Usage {
  messages: number
  /** Requests that were answered with an error. */
  refused: number
  /** Milliseconds until the last device, or each device, has received the message; sorted. */
  delays: number[]
}

export interface Fanout {
  /** Broadcasts that are published together. */
  burst: number
  /** Bursts in flight. */
  bursts: number
  seconds: number
  /** Bytes of the message. */
  size: number
  topics?: string[]
  /** Milliseconds between two broadcasts. With it, the delay of every message is recorded. */
  intervalMs?: number
}

export interface Rest {
  path: string
  callers: number
  seconds: number
  size: number
  /** Messages in one request, as NDJSON. */
  lines?: number
  /** Counts answers instead of the messages that devices receive. */
  countAnswers?: boolean
  /** Sends the requests to the node that has no devices. */
  otherNode?: boolean
}

const CONNECT_CONCURRENCY = 64
const CALLERS = 16
const TIMEOUT_MS = 20_000
/** Time for a candidate that was idle during other measurements to get its caches warm. */
const REWARM_SECONDS = 0.15
const FLOOD_BYTES = 4 * 1_048_576
const FLOOD_MESSAGE_BYTES = 32_768

const { dialect: dialectName, port, otherPort, server }: LoadSettings = childSettings()
const dialect = dialects[dialectName]
const counter = new ReceiveCounter()
const group: DeviceGroup = { port, dialect, counter, onText: undefined }
const devices: LoadDevice[] = []
let stalledCount = 0

/** A JSON text of `size` bytes. */
function message (size: number): string {
  return JSON.stringify({ text: 'x'.repeat(size - '{"text":""}'.length) })
}

async function connect ({ count, topics }: { count: number, topics?: string[] }): Promise<Usage> {
  const spent = meter(server)
  const first = devices.length
  await lanes(count, CONNECT_CONCURRENCY, async number => {
    devices[first + number] = await LoadDevice.connect(group, `device-${first + number}`, topics?.[number % topics.length])
  })
  return spent()
}

/** Publishes broadcasts in the way of the candidate: over a WebSocket or with POST. */
async function publisher (size: number, topics: Array<string | undefined>): Promise<{ publish: () => void, refused: () => number, end: () => void }> {
  const data = message(size)
  let published = 0
  let refused = 0
  if (dialect.publish) {
    const device = await LoadDevice.connect(group, 'publisher', 'none')
    const frames = topics.map(topic => dialect.publish!(data, topic))
    return { publish: () => device.write(frames[published++ % frames.length]!), refused: () => refused, end () {} }
  }
  const callers = await Caller.connect(port, CALLERS)
  for (const caller of callers) caller.onAnswer = ok => { if (!ok) refused++ }
  const requests = topics.map(topic => post(topic === undefined ? '/broadcast' : `/broadcast?topic=${topic}`, data))
  return {
    publish: () => callers[published % CALLERS]!.write(requests[published++ % requests.length]!),
    refused: () => refused,
    end: () => { for (const caller of callers) caller.end() }
  }
}

async function fanout ({ burst, bursts, seconds, size, topics, intervalMs }: Fanout): Promise<Measured> {
  const audience = topics ? devices.length / topics.length : devices.length - stalledCount
  const { publish, refused, end } = await publisher(size, topics ?? [undefined])
  const published = async (burst: number, bursts: number, seconds: number) => {
    const until = performance.now() + seconds * 1_000
    const delays: number[] = []
    let count = 0
    counter.reset(dialect.messageBytes?.(message(size), topics?.[0]))
    if (intervalMs !== undefined) counter.recordDelays(delays)
    await within(TIMEOUT_MS + seconds * 1_000, () => `${counter.received} of ${count * audience} messages arrived, ${refused()} broadcasts were refused`, resolve => {
      let since = 0
      const go = () => {
        since = performance.now()
        counter.markSent()
        for (let n = 0; n < burst; n++) publish()
        count += burst
      }
      const next = () => {
        go()
        counter.onReaching((count - burst * (bursts - 1)) * audience, step)
      }
      const step = () => {
        const now = performance.now()
        if (burst * bursts === 1 && intervalMs === undefined) delays.push(now - since)
        if (now >= until) counter.onReaching(count * audience, resolve)
        else if (intervalMs === undefined) next()
        else setTimeout(next, intervalMs - (now - since))
      }
      for (let n = 1; n < bursts; n++) go()
      next()
    })
    return delays
  }
  await published(1, 1, REWARM_SECONDS)
  const spent = meter(server)
  const delays = await published(burst, bursts, seconds)
  end()
  return { ...spent(), messages: counter.received, refused: refused(), delays: delays.toSorted((a, b) => a - b) }
}

/** Concurrent callers; each sends its next request when the last is answered. `:id` in the path is replaced by each device in turn. */
async function rest ({ path, callers: count, seconds, size, lines, countAnswers = false, otherNode = false }: Rest): Promise<Measured> {
  const data = message(size)
  const requests = devices.map((_device, at) => {
    if (lines === undefined) return post(path.replace(':id', `device-${at}`), data)
    const to = Array.from({ length: lines }, (_, line) => `device-${(at * lines + line) % devices.length}`)
    return post(path, to.map(id => `{"to":"${id}","data":${data}}\n`).join(''), 'application/x-ndjson')
  })
  const callers = await Caller.connect(otherNode ? otherPort! : port, count)
  group.onText = countAnswers ? answerText : undefined
  counter.reset()
  let asked = 0
  let answered = 0
  let refused = 0
  const spent = meter(server)
  const until = performance.now() + seconds * 1_000
  await within(TIMEOUT_MS + seconds * 1_000, () => `${answered} of ${asked} requests were answered`, resolve => {
    let busy = count
    for (const caller of callers) {
      const ask = () => caller.write(requests[asked++ % requests.length]!)
      caller.onAnswer = ok => {
        answered++
        if (!ok) refused++
        if (performance.now() < until) ask()
        else if (--busy === 0) resolve()
      }
      ask()
    }
  })
  const messages = (answered - refused) * (lines ?? 1)
  if (!countAnswers) {
    await within(TIMEOUT_MS, () => `${counter.received} of ${messages} messages arrived`, resolve => {
      counter.onReaching(messages, resolve)
    })
  }
  for (const caller of callers) caller.end()
  group.onText = undefined
  return { ...spent(), messages, refused, delays: [] }
}

function answerText (device: LoadDevice, text: string): void {
  const answer = dialect.answer!(text)
  if (answer !== undefined) device.send(answer)
}

/** Devices call the server; each sends its next call when the last is answered. */
async function echo ({ width, seconds, size }: { width: number, seconds: number, size: number }): Promise<Measured> {
  const frame = frameOf(opcodes.text, dialect.echo!(message(size)))
  counter.reset()
  const spent = meter(server)
  const until = performance.now() + seconds * 1_000
  await within(TIMEOUT_MS + seconds * 1_000, () => `${counter.received} echoes came`, resolve => {
    let busy = width
    group.onText = device => {
      if (performance.now() < until) device.write(frame)
      else if (--busy === 0) resolve()
    }
    for (const device of devices.slice(0, width)) device.write(frame)
  })
  group.onText = undefined
  return { ...spent(), messages: counter.received, refused: 0, delays: [] }
}

/** Stops the last `count` devices from reading, and sends each more than all buffers on the path hold. */
async function stall ({ count }: { count: number }): Promise<void> {
  const [caller] = await Caller.connect(port, 1) as [Caller]
  for (const [at, device] of devices.entries()) {
    if (at < devices.length - count) continue
    device.stall()
    for (let sent = 0; sent < FLOOD_BYTES; sent += FLOOD_MESSAGE_BYTES) {
      await new Promise(resolve => {
        caller.onAnswer = resolve
        caller.write(post(`/devices/device-${at}/messages`, message(FLOOD_MESSAGE_BYTES)))
      })
    }
  }
  caller.end()
  stalledCount = count
}

async function within (milliseconds: number, state: () => string, work: (resolve: () => void) => void): Promise<void> {
  const deadline = new AbortController()
  const late = sleep(milliseconds, undefined, { signal: deadline.signal }).then(() => { throw new Error(`${dialectName}: ${state()}`) })
  await Promise.race([new Promise<void>(work), late]).finally(() => deadline.abort())
}

serveCommands({ connect, fanout, rest, echo, stall })
