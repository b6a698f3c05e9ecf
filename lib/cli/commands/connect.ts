import { gatewayFlags, type Command } from '../command.ts'
import { CommandFailure, messageOf } from '../command-failure.ts'
import { DeviceSession, type SessionOptions } from '../device-session.ts'
import type { Flags } from '../flags.ts'
import { gatewayAddress } from '../gateway-client.ts'

export const connect: Command = {
  name: 'connect',
  summary: 'Be a device: print what arrives, and answer calls from the terminal',
  parameters: ['ID'],
  flags: {
    answer: { value: 'JSON', about: 'Answer every call with this' },
    echo: { about: 'Answer every call with its params' },
    topic: { value: 'FILTER', about: 'Listen to a topic' },
    path: { value: 'PATH', about: 'Path where devices connect; by default /ws' },
    ...gatewayFlags
  },
  about: [
    'A line of the input answers the oldest open call: JSON or text, or !text to refuse it. Without an open call, the line is sent as a message.',
    'The end of the input ends the command, except with --answer or --echo. Letters are acknowledged once they are printed.'
  ],
  examples: [
    { line: 'fastify-devices connect abc123', does: 'Type the answers' },
    { line: 'fastify-devices connect abc123 --echo --topic floors/3/#', does: 'A device for tests' },
    { line: 'echo \'{"celsius":21}\' | fastify-devices connect abc123', does: 'Send one message as a device, and leave' }
  ],
  async run (invocation) {
    const { args: [id], flags } = invocation
    const { url, token } = gatewayAddress(invocation)
    const answerOf = answererOf(flags)
    return await sessionOf({ deviceId: id!, url: socketUrl(flags.text('path') ?? '/ws', url), token, topic: flags.text('topic'), answerOf }).run()

    function sessionOf (options: SessionOptions): DeviceSession {
      try {
        return new DeviceSession(invocation, options)
      } catch (error) { // the SDK checks the id
        throw new CommandFailure('usage', messageOf(error).replace('The option "deviceId" is invalid', `"${id}" is not an id: 1 to 128 of A-Z a-z 0-9 . _ : @ + = ~ -`))
      }
    }
  }
}

/** Never on another host, which would get the token. */
function socketUrl (path: string, gateway: URL): URL {
  const url = URL.canParse(path, gateway.href) ? new URL(path, gateway) : undefined
  if (url?.origin !== gateway.origin) throw new CommandFailure('usage', `"${path}" is not a path`)
  return url
}

function answererOf (flags: Flags): SessionOptions['answerOf'] {
  const answer = flags.text('answer')
  if (flags.isGiven('echo')) {
    if (answer !== undefined) throw new CommandFailure('usage', 'Give --answer or --echo, not both')
    return params => params ?? {}
  }
  if (answer === undefined) return undefined
  try {
    const result: unknown = JSON.parse(answer)
    return () => result
  } catch {
    throw new CommandFailure('usage', 'The value of --answer is not JSON')
  }
}
