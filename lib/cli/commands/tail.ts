import { setTimeout as sleep } from 'node:timers/promises'
import { gatewayFlags, type Command, type Invocation } from '../command.ts'
import { EventReader } from '../event-reader.ts'
import type { StreamEvent } from '../event-stream.ts'
import { GatewayClient } from '../gateway-client.ts'
import { time } from '../table.ts'

/** An event as the gateway sends it. */
interface EventRecord {
  type: string
  at?: number
  node?: string
  deviceId?: string
  data?: unknown
}

export const tail: Command = {
  name: 'tail',
  summary: 'Follow what happens: devices connect and disconnect, messages arrive, letters end',
  parameters: [],
  flags: {
    types: { value: 'TYPES', about: 'Only these types of events, separated by commas' },
    ...gatewayFlags
  },
  about: [
    'Ends with Ctrl-C. If the connection to the gateway ends, it reconnects and continues after the last event;',
    'the event "gap" says that events were missed.'
  ],
  examples: [
    { line: 'fastify-devices tail --types connected,disconnected', does: 'Who comes and goes' },
    { line: 'fastify-devices tail --types message | jq .data', does: 'What devices send' }
  ],
  async run (invocation) {
    const reader = new EventReader(new GatewayClient(invocation), invocation.flags.text('types'))
    const print = invocation.output.table<EventRecord>([
      { title: 'TIME', of: ({ at }) => time(at), width: 24 },
      { title: 'EVENT', of: ({ type }) => type, width: 13 },
      { title: 'DEVICE', of: ({ deviceId }) => deviceId, width: 16 },
      { title: 'NODE', of: ({ node }) => node, width: 8 },
      { title: 'DATA', of: ({ data }) => data }
    ])
    for (;;) {
      for await (const event of reader.events()) await print([recordOf(event)])
      await pause(invocation, reader.delay)
    }
  }
}

/** Says that the connection has ended, and waits before the next one. */
async function pause ({ output, terminal }: Invocation, delay: number): Promise<void> {
  terminal.signal.throwIfAborted()
  await output.note('The connection to the gateway ended; reconnecting')
  await sleep(delay, undefined, { signal: terminal.signal })
}

/** The record of an event. A gateway of another version may send something else. */
function recordOf ({ type, data }: StreamEvent): EventRecord {
  try {
    const record: unknown = JSON.parse(data)
    if (typeof record === 'object' && record !== null && !Array.isArray(record)) return { type, ...record }
  } catch {}
  return { type, data }
}
