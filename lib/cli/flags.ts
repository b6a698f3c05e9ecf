import { CommandFailure } from './command-failure.ts'
import type { Terminal } from './terminal.ts'

/** The maximum of a timer; one with a longer delay fires at once. */
export const MAX_DELAY_SECONDS = 2_147_483

export interface Flag {
  /** What its value is; a flag without one is on or off. */
  readonly value?: string
  readonly about: string
  /** The environment variable that is used if the flag is not given. */
  readonly env?: string
}

export type FlagValues = Readonly<Record<string, string | boolean | undefined>>

/** The flags of a command: those given, else those of the environment. */
export class Flags {
  readonly #declared: Readonly<Record<string, Flag>>
  readonly #given: FlagValues
  readonly #env: Terminal['env']

  constructor (declared: Readonly<Record<string, Flag>>, given: FlagValues, env: Terminal['env']) {
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

  /** A duration in seconds for a timer. */
  delay (name: string): number | undefined {
    return this.#number(name, value => value >= 0 && value <= MAX_DELAY_SECONDS, `a number of seconds up to ${MAX_DELAY_SECONDS}`)
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
