import { isUtf8 } from 'node:buffer'
import { addAbortSignal } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import type { Invocation } from './command.ts'
import { CommandFailure } from './command-failure.ts'

/** A body and its content type. */
export interface MessageData {
  body: string
  type: 'application/json' | 'text/plain'
}

/** The message of a command: its argument, or its input if the argument is `-` or missing. JSON if it is JSON, else text. */
export async function messageData (argument: string | undefined, { terminal, flags }: Invocation): Promise<MessageData> {
  const data = argument === undefined || argument === '-' ? await inputOf(argument, terminal) : argument
  const isText = flags.isGiven('text') || jsonOrText(data) === data
  return { body: data, type: isText ? 'text/plain' : 'application/json' }
}

async function inputOf (argument: string | undefined, { stdin, signal }: Invocation['terminal']): Promise<string> {
  if (argument === undefined && stdin.isTTY) throw new CommandFailure('usage', 'DATA is missing: give it as an argument, or pipe it into the command')
  const bytes = await buffer(addAbortSignal(signal, stdin))
  if (!isUtf8(bytes)) throw new CommandFailure('usage', 'The input is not text in UTF-8')
  return bytes.toString().replace(/\r?\n$/, '') // of the last line
}

/** The value of a text. What begins like JSON and is none is a mistake. */
export function jsonOrText (data: string): unknown {
  try {
    return JSON.parse(data)
  } catch {
    if (/^\s*[[{"]/.test(data)) throw new CommandFailure('usage', 'The message begins like JSON, but is not valid JSON')
    return data
  }
}
