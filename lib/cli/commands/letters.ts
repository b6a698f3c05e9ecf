import { gatewayFlags, type Command, type Invocation } from '../command.ts'
import { CommandFailure } from '../command-failure.ts'
import { GatewayClient } from '../gateway-client.ts'
import { cell, time, type Column } from '../table.ts'

interface Receipt {
  id: string
  status: string
  at: number
  expiresAt: number
  size: number
  collapse?: string
  device?: unknown
}

const columns: ReadonlyArray<Column<Receipt>> = [
  { title: 'LETTER', of: ({ id }) => id },
  { title: 'STATUS', of: ({ status }) => status },
  { title: 'AT', of: ({ at }) => time(at) },
  { title: 'EXPIRES', of: ({ expiresAt }) => time(expiresAt) },
  { title: 'BYTES', of: ({ size }) => size },
  { title: 'COLLAPSE', of: ({ collapse }) => collapse },
  { title: 'ERROR', of: ({ device }) => device }
]

type Action = (invocation: Invocation, gateway: GatewayClient, path: readonly string[]) => Promise<void>

const actions: Readonly<Record<string, { needsLetter: boolean, act: Action }>> = {
  show: { needsLetter: true, act: async ({ output }, gateway, path) => await output.table(columns)([await gateway.request('GET', path)]) },
  cancel: { needsLetter: true, act: async ({ output }, gateway, path) => await output.table(columns)([await gateway.request('DELETE', path)]) },
  purge: {
    needsLetter: false,
    async act ({ output }, gateway, path) {
      const result: { cancelled: number } = await gateway.request('DELETE', path)
      await output.record(result, `letters cancelled: ${cell(result.cancelled)}`)
    }
  }
}

export const letters: Command = {
  name: 'letters',
  summary: 'List the letters that wait for a device; show or cancel one, or cancel all',
  parameters: ['ID', '[show|cancel|purge]', '[LETTER]'],
  flags: gatewayFlags,
  about: [
    'show LETTER    what became of a letter, also after it has ended',
    'cancel LETTER  cancels a letter that waits',
    'purge          cancels all letters that wait'
  ],
  examples: [
    { line: 'fastify-devices letters abc123', does: 'The letters that wait, oldest first' },
    { line: 'fastify-devices letters abc123 show X79RhAzD2', does: 'Whether a letter was delivered; "send --ttl" printed its id' },
    { line: 'fastify-devices letters abc123 purge', does: 'Cancel all of them' }
  ],
  async run (invocation) {
    const { args: [id, word, letter] } = invocation
    const path = ['devices', id!, 'messages']
    if (word === undefined) return await list(invocation, new GatewayClient(invocation), path)
    const action = Object.hasOwn(actions, word) ? actions[word] : undefined
    if (!action) throw new CommandFailure('usage', `After ID comes show, cancel or purge, not "${word}"`)
    if (action.needsLetter !== (letter !== undefined)) throw new CommandFailure('usage', action.needsLetter ? `letters ID ${word} needs LETTER` : `letters ID ${word} takes no LETTER`)
    await action.act(invocation, new GatewayClient(invocation), letter === undefined ? path : [...path, letter])
  }
}

const list: Action = async ({ output }, gateway, path) => {
  const print = output.table(columns)
  for await (const { messages } of gateway.pages(path)) await print(messages)
}
