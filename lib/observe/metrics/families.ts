import type { Observer } from '../../connection/stats.ts'
import type { Devices } from '../../gateway/devices.ts'
import type { Ending } from '../../storage/mailbox.ts'
import { Histogram } from './histogram.ts'
import type { MetricFamily, Sample } from './metric.ts'

type MeasuredDevices = Pick<Devices, 'stats' | 'health' | 'lettersWaiting'>

/** Every outcome has a value from the start, so that the first damaged letter is an increase. */
const letterOutcomes: Record<'queued' | Ending, number> = { queued: 0, delivered: 0, expired: 0, cancelled: 0, replaced: 0, refused: 0, 'dead-lettered': 0, damaged: 0 }

/** The counters of the node since its start, read at each scrape. */
export function counters (devices: MeasuredDevices): MetricFamily[] {
  const stats = () => devices.stats()
  return [
    counter('devices_admissions_total', 'Connections of devices that were admitted.', [], () => [{ labels: {}, value: stats().admissions }]),
    counter('devices_refusals_total', 'Devices, messages of devices and REST requests that were refused, by reason.', ['reason'], () => samplesBy('reason', stats().refusals)),
    counter('devices_disconnects_total', 'Connections that ended, by close code.', ['code'], () => samplesBy('code', namedCodes(stats().closeCodes))),
    counter('devices_messages_total', 'Messages received from devices (in) and frames sent to them (out).', ['direction'], () => samplesBy('direction', stats().messages)),
    counter('devices_bytes_total', 'Payload bytes of the messages of devices.', ['direction'], () => samplesBy('direction', stats().bytes)),
    counter('devices_calls_total', 'Calls of devices (in) and to devices (out) that have ended, by outcome: ok, or why they failed.', ['direction', 'outcome'], () => {
      const { answers, calls } = stats()
      return [...samplesBy('outcome', answers, { direction: 'in' }), ...samplesBy('outcome', calls, { direction: 'out' })]
    }),
    counter('devices_letters_total', 'Letters that were accepted (queued) or have ended, by outcome.', ['outcome'], () => samplesBy('outcome', { ...letterOutcomes, ...stats().letters }))
  ]
}

export function gauges (devices: MeasuredDevices): MetricFamily[] {
  return [
    gauge('devices_connected', 'Devices that are connected to this node.', ['transport', 'protocol'], () =>
      Object.entries(devices.stats().connected).flatMap(([transport, counts]) => samplesBy('protocol', counts, { transport }))),
    gauge('devices_letters_waiting', 'Letters that wait in the mailbox; nodes that share a mailbox report the same number.', [], async () => {
      const value = await devices.lettersWaiting()
      return value === undefined ? [] : [{ labels: {}, value }]
    }),
    { ...gauge('devices_backplane_up', '1 if the node can reach the other nodes.', [], async () => [{ labels: {}, value: (await devices.health()).backplane.ok ? 1 : 0 }]), aggregator: 'min' }
  ]
}

/** The durations that an observer of the devices counts. `methods` are labels in addition to those that the devices declare. */
export function durations (devices: Pick<Devices, 'declares'>, methods: ReadonlySet<string>): { families: MetricFamily[], observer: Observer } {
  const calls = new Histogram({
    name: 'devices_call_duration_seconds',
    help: 'Duration of the calls of devices (in) and to devices (out).',
    labelNames: ['direction', 'method'],
    bounds: [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
  })
  const pongs = new Histogram({
    name: 'devices_pong_seconds', help: 'Time from a ping to the pong of the device.', labelNames: [], bounds: [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]
  })
  const observer: Observer = {
    // a device or a REST caller can name any number of methods
    call: ({ direction, method, duration }) => {
      const isListed = methods.has(method) || devices.declares(direction, method)
      calls.observe({ direction, method: isListed ? method : 'other' }, duration / 1_000)
    },
    pong: delay => pongs.observe({}, delay / 1_000)
  }
  return { families: [calls, pongs], observer }
}

function counter (name: string, help: string, labelNames: string[], samples: MetricFamily['samples']): MetricFamily {
  return { name, help, type: 'counter', labelNames, samples }
}

function gauge (name: string, help: string, labelNames: string[], samples: MetricFamily['samples']): MetricFamily {
  return { name, help, type: 'gauge', labelNames, samples }
}

function samplesBy (label: string, counts: Record<string, number>, labels: Record<string, string> = {}): Sample[] {
  return Object.entries(counts).map(([name, value]) => ({ labels: { ...labels, [label]: name }, value }))
}

/** The counter of all close codes that devices have made up has the code 0. */
function namedCodes ({ 0: other, ...counts }: Record<number, number>): Record<string, number> {
  return other === undefined ? counts : { ...counts, other }
}
