import { gatewayFlags, textFlag, type Command } from '../command.ts'
import { GatewayClient } from '../gateway-client.ts'
import { messageData } from '../message-data.ts'
import { cell } from '../table.ts'

export const broadcast: Command = {
  name: 'broadcast',
  summary: 'Send a message to all connected devices, or to those that listen to a topic',
  parameters: ['[DATA]'],
  flags: {
    topic: { value: 'TOPIC', about: 'Only to devices that listen to it' },
    text: textFlag,
    ...gatewayFlags
  },
  about: [
    'DATA is JSON, or else text. Without DATA, or if it is "-", the input of the command is the message.'
  ],
  examples: [
    { line: 'fastify-devices broadcast \'{"hello":"all"}\'', does: 'To all devices' },
    { line: 'fastify-devices broadcast \'{"alarm":true}\' --topic floors/3/kitchen', does: 'To those that listen to the topic' }
  ],
  async run (invocation) {
    const { args: [data], flags, output } = invocation
    const gateway = new GatewayClient(invocation)
    const { body, type } = await messageData(data, invocation)
    const result: { id: string, sent: number, nodes: number } = await gateway.request('POST', ['broadcast'], {
      query: { topic: flags.text('topic') }, headers: { 'content-type': type }, body
    })
    await output.record(result, `devices: ${cell(result.sent)}  nodes: ${cell(result.nodes)}  id: ${cell(result.id)}`)
  }
}
