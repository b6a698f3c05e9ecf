import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import type { Command } from './command.ts'
import { CommandFailure, messageOf } from './command-failure.ts'
import { broadcast } from './commands/broadcast.ts'
import { call } from './commands/call.ts'
import { connect } from './commands/connect.ts'
import { letters } from './commands/letters.ts'
import { ls } from './commands/ls.ts'
import { send } from './commands/send.ts'
import { serve } from './commands/serve.ts'
import { show } from './commands/show.ts'
import { tail } from './commands/tail.ts'
import { exitCodes, type Exit } from './exit-codes.ts'
import { commandHelp, programHelp } from './help.ts'
import { nearest } from './nearest.ts'
import { Output, OutputClosed } from './output.ts'
import { parseCommand } from './parse-command.ts'
import { json, printable } from './printable.ts'
import type { Terminal } from './terminal.ts'

/** Every command, in the order of the help. */
export const commands: readonly Command[] = [serve, ls, show, send, call, broadcast, letters, tail, connect]

/** Runs a command line; resolves with the exit code, once all output is written. Never rejects. */
export async function run (words: readonly string[], terminal: Terminal): Promise<number> {
  const output = new Output(terminal, words.includes('--json'))
  try {
    return exitCodes[await dispatch(words, terminal, output) ?? 'ok'].code
  } catch (error) {
    return exitCodes[await report(error, words, terminal, output)].code
  }
}

async function dispatch ([first, ...rest]: readonly string[], terminal: Terminal, output: Output): Promise<Exit | void> {
  if (first === undefined || first === '--help' || first === '-h' || first === 'help') return await help(rest[0], output)
  if (first === '--version') return await output.text(version())
  const command = commandOf(first)
  const { isHelp, ...parsed } = parseCommand(command, rest, terminal.env)
  if (isHelp) return await output.text(...commandHelp(command))
  return await command.run({ ...parsed, terminal, output })
}

async function help (name: string | undefined, output: Output): Promise<void> {
  await output.text(...name === undefined ? programHelp(commands) : commandHelp(commandOf(name)))
}

function commandOf (name: string): Command {
  const command = commands.find(command => command.name === name)
  if (command) return command
  if (name.startsWith('-')) throw new CommandFailure('usage', `The command comes before its flags, and "${name}" is not a command`)
  const meant = nearest(name, commands.map(({ name }) => name))
  throw new CommandFailure('usage', `There is no command "${name}"${meant ? `; did you mean ${meant}?` : ''}`)
}

/** Prints why a command has failed, and resolves with how it ended. */
async function report (error: unknown, words: readonly string[], { signal }: Terminal, output: Output): Promise<Exit> {
  if (signal.aborted) return signal.reason === 'SIGINT' ? 'interrupted' : 'terminated'
  // the reader of the output has what it wants, like `head`
  if (error instanceof OutputClosed) return 'ok'
  const { exit, answer } = error instanceof CommandFailure ? error : new CommandFailure('failed', '')
  await output.note(words.includes('--json')
    ? json({ error: exit, message: messageOf(error), ...answer })
    : `${output.style('red', 'fastify-devices:')} ${textOf(error)}${exit === 'usage' ? `\n${hintOf(words)}` : ''}`)
  return exit
}

/** A failure has a message; the error of a config or a bug has a stack too. */
function textOf (error: unknown): string {
  if (!(error instanceof Error)) return printable(messageOf(error))
  if (!(error instanceof CommandFailure)) return String(error.stack).split('\n').map(printable).join('\n')
  const { code, device } = error.answer
  return [printable(error.message), ...(code === undefined ? [] : [`(${printable(String(code))})`]), ...(device === undefined ? [] : [json(device)])].join(' ')
}

function hintOf ([name]: readonly string[]): string {
  return `See fastify-devices ${commands.some(command => command.name === name) ? `${name} ` : ''}--help`
}

function version (): string {
  return JSON.parse(readFileSync(fileURLToPath(import.meta.resolve('fastify-devices/package.json')), 'utf8')).version
}
