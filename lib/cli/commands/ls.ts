import { gatewayFlags, type Command } from '../command.ts'
import { GatewayClient } from '../gateway-client.ts'
import { time } from '../table.ts'

interface Presence {
  deviceId: string
  node: string
  since: number
}

export const ls: Command = {
  name: 'ls',
  summary: 'List the connected devices of all nodes',
  parameters: [],
  flags: {
    prefix: { value: 'TEXT', about: 'Only devices whose ids begin with it' },
    topic: { value: 'TOPIC', about: 'Only devices that listen to it' },
    ...gatewayFlags
  },
  about: [],
  examples: [
    { line: 'fastify-devices ls --prefix acme:', does: 'The devices of one tenant' },
    { line: 'fastify-devices ls --json | wc -l', does: 'How many devices are connected' }
  ],
  async run (invocation) {
    const { flags, output } = invocation
    const gateway = new GatewayClient(invocation)
    const print = output.table<Presence>([{ title: 'DEVICE', of: ({ deviceId }) => deviceId }, { title: 'NODE', of: ({ node }) => node }, { title: 'SINCE', of: ({ since }) => time(since) }])
    for await (const { devices } of gateway.pages(['devices'], { prefix: flags.text('prefix'), topic: flags.text('topic') })) await print(devices)
  }
}
