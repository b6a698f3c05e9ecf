import type { Exit } from './exit-codes.ts'

/** A command has failed for a reason that its user understands: a message without a stack. */
export class CommandFailure extends Error {
  readonly exit: Exit
  /** What the gateway answered. */
  readonly answer: Readonly<Record<string, unknown>>

  constructor (exit: Exit, message: string, answer: Readonly<Record<string, unknown>> = {}) {
    super(message)
    this.name = 'CommandFailure'
    this.exit = exit
    this.answer = answer
  }
}

/** The message of anything that was thrown. */
export function messageOf (error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
