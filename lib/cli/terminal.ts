import type { Readable, Writable } from 'node:stream'

/** What a command has of its process. Tests pass their own. */
export interface Terminal {
  readonly stdin: Readable & { isTTY?: boolean }
  readonly stdout: Writable & { isTTY?: boolean }
  readonly stderr: Writable
  readonly env: Readonly<Record<string, string | undefined>>
  /** Aborted by a signal of the operating system; its `reason` is the name of that signal. */
  readonly signal: AbortSignal
}
