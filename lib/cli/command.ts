import type { Exit } from './exit-codes.ts'
import type { Flag, Flags } from './flags.ts'
import type { Output } from './output.ts'
import type { Terminal } from './terminal.ts'

/** A command as it was typed. */
export interface Invocation {
  readonly args: readonly string[]
  readonly flags: Flags
  readonly terminal: Terminal
  readonly output: Output
}

export interface Command {
  readonly name: string
  readonly summary: string
  /** Its arguments in order; those in brackets may be left out. */
  readonly parameters: readonly string[]
  readonly flags: Readonly<Record<string, Flag>>
  /** What a user has to know beyond the summary, a line each. */
  readonly about: readonly string[]
  readonly examples: ReadonlyArray<{ line: string, does: string }>
  /** Resolves with how it ended, if not with success. */
  run (invocation: Invocation): Promise<Exit | void>
}

/** Flags of every command that talks to a gateway. */
export const gatewayFlags = {
  url: { value: 'URL', about: 'Address of the gateway; by default http://127.0.0.1:3000', env: 'FASTIFY_DEVICES_URL' },
  token: { value: 'TOKEN', about: 'Token of the gateway. Other users of this machine can read flags; prefer the environment', env: 'FASTIFY_DEVICES_TOKEN' },
  json: { about: 'Print a line of JSON per record on a terminal too' }
} as const satisfies Record<string, Flag>

/** Flag of commands that send a message. */
export const textFlag = { about: 'DATA is text, even if it looks like JSON' } as const satisfies Flag

export const usageOf = ({ name, parameters }: Command): string => ['fastify-devices', name, ...parameters, '[flags]'].join(' ')
