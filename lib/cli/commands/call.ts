import { gatewayFlags, type Command } from '../command.ts'
import { CommandFailure } from '../command-failure.ts'
import { GatewayClient } from '../gateway-client.ts'
import { messageData } from '../message-data.ts'
import { json } from '../printable.ts'

export const call: Command = {
  name: 'call',
  summary: 'Call a method of a device and print its result',
  parameters: ['ID', 'METHOD', '[PARAMS]'],
  flags: {
    timeout: { value: 'SECONDS', about: 'How long to wait for the answer' },
    ...gatewayFlags
  },
  about: [
    'PARAMS is a JSON object or array. If it is "-", the input of the command has the params.',
    'If the device answers with an error, the command fails, and prints the error.'
  ],
  examples: [
    { line: 'fastify-devices call abc123 reboot \'{"delay":5}\'', does: 'Call a method' },
    { line: 'fastify-devices call abc123 temperature --timeout 2 --json | jq .celsius', does: 'Use the result' }
  ],
  async run (invocation) {
    const { args: [id, method, given], flags, output } = invocation
    const gateway = new GatewayClient(invocation)
    const timeout = flags.seconds('timeout')
    const params = given === undefined ? undefined : await messageData(given, invocation)
    if (params && !/^\s*[[{]/.test(params.body)) throw new CommandFailure('usage', 'PARAMS is a JSON object or array')
    const result: unknown = await gateway.request('POST', ['devices', id!, 'calls', method!], {
      query: { timeout },
      ...(params && { headers: { 'content-type': params.type }, body: params.body }),
      wait: timeout
    })
    await output.record(result, json(result, 2))
  }
}
