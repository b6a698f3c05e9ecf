import { gatewayFlags, type Command } from '../command.ts'
import { GatewayClient } from '../gateway-client.ts'
import { time } from '../table.ts'

interface Presence {
  deviceId: string
  node: string
  since: number
}

const PAGE_SIZE = 1_000

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
    let cursor: string | undefined
    do {
      const page = await gateway.request('GET', ['devices'], { query: { limit: PAGE_SIZE, cursor, prefix: flags.text('prefix'), topic: flags.text('topic') } })
      await print(page.devices)
      cursor = page.cursor
    } while (cursor !== undefined)
  }
}
