import { columns, type ColumnName } from './candidates.ts'
import type { Cell, Row } from './bench.ts'
import { FIGURES } from './figures.ts'

/** The cell to which a figure is compared: that of the forty lines, over the same server if the row has it. */
function referenceOf (name: ColumnName, { forty, fortyRedis }: Row['cells']): Cell | undefined {
  return name === 'redis' || name === 'fortyRedis' ? fortyRedis ?? forty : forty
}

/** The rows in Markdown, without columns that are empty: each figure, and its ratio to that of the reference column. */
export function table (rows: Row[]): string {
  return markdown(rows, FIGURES, ({ title, unit, cells }) => [`${title}: ${unit}`, ...figures(cells, (cell, name) => {
    const reference = referenceOf(name, cells)?.value
    return rounded(cell.value) + (reference ? ` (${rounded(cell.value / reference, 2)})` : '')
  })])
}

/** The ratio of each figure to that of the checkout given by `--before`. */
export function comparison (rows: Row[]): string {
  const compared = rows.filter(({ cells }) => cells.ours && cells.before)
  return ['| ours to ours before | ratio |', '| --- | --: |',
    ...compared.map(({ title, unit, cells }) => `| ${title}: ${unit} | ${rounded(cells.ours!.value / cells.before!.value, 2)} |`)].join('\n')
}

/** Utilisation of each server and its load generator, in percent. */
export function shares (rows: Row[]): string {
  // Rows that share their measurements have the same shares.
  const distinct = rows.filter(({ rounds }, at) => rounds !== rows[at - 1]?.rounds)
  return markdown(distinct, 'server / load generator, % of the time', ({ title, cells }) => [
    title, ...figures(cells, ({ server, load }) => `${Math.round(server * 100)} / ${Math.round(load * 100)}`)
  ])
}

function figures (cells: Row['cells'], text: (cell: Cell, name: ColumnName) => string): string[] {
  return (Object.keys(columns) as ColumnName[]).map(name => cells[name] ? text(cells[name], name) : '')
}

function markdown (rows: Row[], corner: string, cellsOf: (row: Row) => string[]): string {
  const names = Object.values(columns)
  const lines = [[corner, ...names], ['---', ...names.map(() => '--:')], ...rows.map(cellsOf)]
  const isUsed = names.map((_, at) => lines.slice(2).some(cells => cells[at + 1] !== ''))
  return lines.map(cells => `| ${cells.filter((_, at) => at === 0 || isUsed[at - 1]).join(' | ')} |`).join('\n')
}

/** Rounded to three significant digits. */
function rounded (value: number, decimals = 3): string {
  if (value >= 100) return String(Math.round(value))
  return decimals === 2 ? value.toFixed(2) : String(Number(value.toPrecision(3)))
}
