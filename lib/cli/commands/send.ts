import { gatewayFlags, textFlag, type Command } from '../command.ts'
import { CommandFailure } from '../command-failure.ts'
import type { Exit } from '../exit-codes.ts'
import { GatewayClient } from '../gateway-client.ts'
import { messageData } from '../message-data.ts'
import { cell } from '../table.ts'

/** A repeated key gets the receipt of the first message, which may have ended in these ways. */
const exits: Readonly<Record<string, Exit>> = { refused: 'refused', 'dead-lettered': 'refused', damaged: 'failed', expired: 'timeout' }

export const send: Command = {
  name: 'send',
  summary: 'Send a message to a device',
  parameters: ['ID', '[DATA]'],
  flags: {
    ttl: { value: 'SECONDS', about: 'Keep the message for the device for so long, as a letter' },
    confirm: { about: 'Wait until the device has acknowledged the message' },
    timeout: { value: 'SECONDS', about: 'How long to wait with --confirm' },
    collapse: { value: 'NAME', about: 'Replace a waiting letter with the same name' },
    key: { value: 'KEY', about: 'Idempotency key: all requests with one key send one message' },
    text: textFlag,
    ...gatewayFlags
  },
  about: [
    'DATA is JSON, or else text. Without DATA, or if it is "-", the input of the command is the message.'
  ],
  examples: [
    { line: 'fastify-devices send abc123 \'{"hello":"world"}\'', does: 'Now; fails if the device is not connected' },
    { line: 'fastify-devices send abc123 \'{"open":"door"}\' --ttl 3600', does: 'Now, or within the hour once the device is back' },
    { line: 'fastify-devices send abc123 --confirm < menu.json', does: 'A file; succeeds once the device has acknowledged it' }
  ],
  async run (invocation) {
    const { args: [id, data], flags, output } = invocation
    const gateway = new GatewayClient(invocation)
    const [ttl, timeout, key] = [flags.seconds('ttl'), flags.seconds('timeout'), flags.text('key')]
    if (key !== undefined && !/^[ -~]+$/.test(key)) throw new CommandFailure('usage', 'A key consists of printable ASCII characters') // it is sent in a header
    const { body, type } = await messageData(data, invocation)
    const receipt: { id: string, status: string } = await gateway.request('POST', ['devices', id!, 'messages'], {
      query: { ttl, confirm: flags.isGiven('confirm') || undefined, timeout, collapse: flags.text('collapse') },
      headers: { 'content-type': type, ...(key !== undefined && { 'idempotency-key': key }) },
      body,
      wait: timeout
    })
    await output.record(receipt, `${cell(receipt.status)}  ${cell(receipt.id)}`)
    return exits[receipt.status]
  }
}
