import { parseArgs } from 'node:util'
import type { Command } from './command.ts'
import { CommandFailure, messageOf } from './command-failure.ts'
import { Flags, type FlagValues } from './flags.ts'
import { nearest } from './nearest.ts'
import type { Terminal } from './terminal.ts'

/** Separates the arguments of a command from its flags. Throws if a flag is unknown or an argument is missing. */
export function parseCommand (command: Command, words: readonly string[], env: Terminal['env']): { args: string[], flags: Flags, isHelp: boolean } {
  const names = Object.keys(command.flags)
  const options = Object.fromEntries([...names, 'help'].map(name => [name, { type: command.flags[name]?.value ? 'string' as const : 'boolean' as const, ...(name === 'help' && { short: 'h' }) }]))
  try {
    const { values, positionals } = parseArgs({ args: [...words], options, allowPositionals: true })
    const isHelp = values.help === true
    if (!isHelp) checkArguments(command, positionals)
    return { args: positionals, flags: new Flags(command.flags, values as FlagValues, env), isHelp }
  } catch (error) {
    throw error instanceof CommandFailure ? error : flagFailure(command, names, messageOf(error))
  }
}

function checkArguments ({ name, parameters }: Command, args: string[]): void {
  const missing = parameters.slice(args.length).find(parameter => !parameter.startsWith('['))
  if (missing) throw new CommandFailure('usage', `${name} needs ${missing}`)
  if (args.length > parameters.length) throw new CommandFailure('usage', `Unexpected argument "${args[parameters.length]}"; quote an argument that has spaces`)
}

/** Adds the nearest flag to what `parseArgs` says of an unknown one. */
function flagFailure ({ name }: Command, flags: string[], message: string): CommandFailure {
  const unknown = /^Unknown option '(?<flag>-+(?<word>[^']*))'/.exec(message)?.groups
  if (!unknown) return new CommandFailure('usage', message)
  const meant = nearest(unknown.word!, flags)
  const hint = meant ? `; did you mean --${meant}?` : '; an argument that begins with "-" goes after "--"'
  return new CommandFailure('usage', `${name} has no flag ${unknown.flag}${hint}`)
}
