import { json, printable } from './printable.ts'

export interface Column<Row> {
  title: string
  of: (row: Row) => unknown
  /** Minimum width, for rows that come one at a time. */
  width?: number
}

const GAP = '  '
const segmenter = new Intl.Segmenter()
/** Characters that fill two cells of a terminal. */
const wide = /^(?:\p{Emoji_Presentation}|\p{Script=Han}|\p{Script=Hangul}|\p{Script=Hiragana}|\p{Script=Katakana}|[\u3000-\u303e\uff01-\uff60\uffe0-\uffe6])|\ufe0f/u
const ascii = /^[ -~]*$/

/** Rows of aligned columns. Widths only grow, so that rows may come in portions. The last column has any width. */
export class Table<Row> {
  readonly #columns: ReadonlyArray<Column<Row>>
  readonly #widths: number[]
  #hasHead = false

  constructor (columns: ReadonlyArray<Column<Row>>) {
    this.#columns = columns
    this.#widths = columns.map(({ title, width = 0 }) => Math.max(width, title.length))
  }

  /** The head before the first rows, undefined before later ones. */
  lines (rows: readonly Row[]): { head: string | undefined, body: string[] } {
    const cells = rows.map(row => this.#columns.map(({ of }) => cell(of(row))))
    for (const row of cells) for (const [at, text] of row.entries()) this.#widths[at] = Math.max(this.#widths[at]!, displayWidth(text))
    const head = this.#hasHead ? undefined : this.#line(this.#columns.map(({ title }) => title))
    this.#hasHead = true
    return { head, body: cells.map(row => this.#line(row)) }
  }

  #line (cells: string[]): string {
    return cells.map((text, at) => text + ' '.repeat(this.#widths[at]! - displayWidth(text))).join(GAP).trimEnd()
  }
}

/** A value on one line of a terminal. */
export function cell (value: unknown): string {
  if (value === undefined) return ''
  return typeof value === 'string' ? printable(value) : json(value)
}

/** The number of cells that a text fills on a terminal. */
export function displayWidth (text: string): number {
  if (ascii.test(text)) return text.length
  let width = 0
  for (const { segment } of segmenter.segment(text)) width += wide.test(segment) ? 2 : 1
  return width
}

/** A point in time as a terminal shows it. */
export function time (milliseconds: number | undefined): string | undefined {
  const date = new Date(milliseconds ?? NaN)
  return Number.isNaN(date.getTime()) ? undefined : date.toISOString()
}
