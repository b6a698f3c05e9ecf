import { parseArgs } from 'node:util'
import type { Command, Flag } from './command.ts'
import { CommandFailure, messageOf } from './command-failure.ts'
import { nearest } from './nearest.ts'
import type { Terminal } from './terminal.ts'

type Values = Readonly<Record<string, string | boolean | undefined>>

/** The flags of a command: those given, else those of the environment. */
export class Flags {
  readonly #declared: Readonly<Record<string, Flag>>
  readonly #given: Values
  readonly #env: Terminal['env']

  constructor (declared: Readonly<Record<string, Flag>>, given: Values, env: Terminal['env']) {
    this.#declared = declared
    this.#given = given
    this.#env = env
    for (const name of Object.keys(given)) if (given[name] === '') throw new CommandFailure('usage', `The value of --${name} is empty`)
  }

  /** Whether the command line has the flag, whatever the environment has. */
  isGiven (name: string): boolean {
    return this.#given[name] !== undefined
  }

  /** An empty variable counts as one that is not set. */
  text (name: string): string | undefined {
    const variable = this.#declared[name]?.env
    return this.#given[name]?.toString() ?? ((variable && this.#env[variable]) || undefined)
  }

  /** A token that fits into a header. */
  token (): string | undefined {
    const token = this.text('token')
    if (token === undefined || /^[!-~]+$/.test(token)) return token
    throw new CommandFailure('usage', 'A token consists of visible ASCII characters, without spaces')
  }

  /** A duration in seconds. */
  seconds (name: string): number | undefined {
    return this.#number(name, value => value >= 0, 'a number of seconds')
  }

  port (name: string): number | undefined {
    return this.#number(name, value => Number.isInteger(value) && value >= 0 && value <= 65_535, 'a port from 0 to 65535')
  }

  #number (name: string, isValid: (value: number) => boolean, expected: string): number | undefined {
    const text = this.text(name)
    if (text === undefined) return undefined
    const value = text.trim() === '' ? NaN : Number(text)
    if (!Number.isFinite(value) || !isValid(value)) throw new CommandFailure('usage', `${this.#sourceOf(name)} is ${expected}, not "${text}"`)
    return value
  }

  #sourceOf (name: string): string {
    return this.isGiven(name) ? `--${name}` : this.#declared[name]!.env!
  }
}

/** Separates the arguments of a command from its flags. Throws if a flag is unknown or an argument is missing. */
export function parseCommand (command: Command, words: readonly string[], env: Terminal['env']): { args: string[], flags: Flags, isHelp: boolean } {
  const names = Object.keys(command.flags)
  const options = Object.fromEntries([...names, 'help'].map(name => [name, { type: command.flags[name]?.value ? 'string' as const : 'boolean' as const, ...(name === 'help' && { short: 'h' }) }]))
  try {
    const { values, positionals } = parseArgs({ args: [...words], options, allowPositionals: true })
    const isHelp = values.help === true
    if (!isHelp) checkArguments(command, positionals)
    return { args: positionals, flags: new Flags(command.flags, values as Values, env), isHelp }
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
