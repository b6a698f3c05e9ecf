import type { Writable } from 'node:stream'
import { interruptible } from './interruptible.ts'
import { json } from './printable.ts'
import { Table, type Column } from './table.ts'
import type { Terminal } from './terminal.ts'

const styles = { bold: [1, 22], dim: [2, 22], red: [31, 39] } as const

/** Nobody reads the output any more. */
export class OutputClosed extends Error {}

/** Prints records: for a person on a terminal, as a line of JSON each otherwise. */
export class Output {
  /** The output is for a person. */
  readonly isTerminal: boolean
  readonly #stdout: Writable
  readonly #stderr: Writable
  readonly #hasColors: boolean
  readonly #signal: AbortSignal

  constructor ({ stdout, stderr, env, signal }: Terminal, asJson: boolean) {
    this.#stdout = stdout
    this.#stderr = stderr
    this.#signal = signal
    this.isTerminal = stdout.isTTY === true && !asJson
    this.#hasColors = this.isTerminal && !env.NO_COLOR && env.TERM !== 'dumb'
    for (const stream of [stdout, stderr]) stream.on('error', () => {}) // `write` rejects as well
  }

  /** Prints records of one kind, in as many portions as there are. */
  table<Row> (columns: ReadonlyArray<Column<Row>>): (rows: readonly Row[]) => Promise<void> {
    const table = new Table(columns)
    return async rows => {
      if (!this.isTerminal) return await this.#print(rows.map(row => json(row)))
      const { head, body } = table.lines(rows)
      await this.#print(head === undefined ? body : [this.style('bold', head), ...body])
    }
  }

  /** Prints one record; a terminal shows the text instead. The text must be printable. */
  async record (record: unknown, text: string): Promise<void> {
    await this.#print([this.isTerminal ? text : json(record)])
  }

  /** Prints lines that are the same on a terminal and in a pipe. */
  async text (...lines: string[]): Promise<void> {
    await this.#print(lines)
  }

  /** Says something beside the output, if somebody reads it. */
  async note (text: string): Promise<void> {
    await written(this.#stderr, `${text}\n`, this.#signal).catch(() => {})
  }

  style (name: keyof typeof styles, text: string): string {
    const [on, off] = styles[name]
    return this.#hasColors ? `\u001b[${on}m${text}\u001b[${off}m` : text
  }

  async #print (lines: string[]): Promise<void> {
    if (lines.length > 0) await written(this.#stdout, `${lines.join('\n')}\n`, this.#signal)
  }
}

/** Resolves once the stream has taken the text, so that a slow reader slows the command down. Rejects if the pipe is closed, and when a signal arrives. */
async function written (stream: Writable, text: string, signal: AbortSignal): Promise<void> {
  await interruptible(signal, new Promise<void>((resolve, reject) => {
    stream.write(text, error => error ? reject((error as NodeJS.ErrnoException).code === 'EPIPE' ? new OutputClosed() : error) : resolve())
  }))
}
