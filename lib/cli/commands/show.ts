import { gatewayFlags, type Command } from '../command.ts'
import { GatewayClient } from '../gateway-client.ts'
import { cell, time } from '../table.ts'

/** Members that are points in time. */
const times = new Set(['since', 'at'])

export const show: Command = {
  name: 'show',
  summary: 'Show what is known about a device',
  parameters: ['ID'],
  flags: gatewayFlags,
  about: [
    'Also for a device that is away, while letters wait for it or the gateway remembers its last connection.'
  ],
  examples: [
    { line: 'fastify-devices show abc123', does: 'Where it is connected, its topics, how many letters wait' },
    { line: 'fastify-devices show abc123 --json | jq .waiting', does: 'One figure, for a script' }
  ],
  async run (invocation) {
    const { args: [id], output } = invocation
    const details: Record<string, unknown> = await new GatewayClient(invocation).request('GET', ['devices', id!])
    await output.record(details, facts(details).map(([name, value]) => `${output.style('bold', name)}  ${value}`).join('\n'))
  }
}

/** A line for each member, with aligned names. */
function facts (details: Record<string, unknown>): Array<[string, string]> {
  const rows = Object.entries(details).flatMap(([name, value]) => nested(name, value))
  const width = Math.max(...rows.map(([name]) => name.length))
  return rows.map(([name, value]) => [name.padEnd(width), value])
}

function nested (name: string, value: unknown): Array<[string, string]> {
  if (Array.isArray(value)) return [[cell(name), value.map(cell).join(' ')]]
  if (typeof value === 'object' && value !== null) return Object.entries(value).map(([member, value]) => [cell(`${name}.${member}`), shown(member, value)])
  return [[cell(name), shown(name, value)]]
}

function shown (name: string, value: unknown): string {
  return (times.has(name) ? time(value as number) : undefined) ?? cell(value)
}
