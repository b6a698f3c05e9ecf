import { barChart, type Panel } from './bar-chart.ts'
import { figuresOf, type FigureRow } from './figures.ts'

/** Which rows of the tables a bar chart shows. */
interface Drawing {
  title: string
  /** The rows of one scale have one unit and are drawn on one axis. */
  scales: RowFilter[]
}

interface RowFilter {
  unit: string
  titles: RegExp
}

/** The bar charts of docs/performance.md, by file name. */
const drawings: Record<string, Drawing> = {
  'fan-out.svg': {
    title: 'Broadcast of 128 B to 1,000 devices: CPU time for each message',
    scales: [{ unit: 'µs/message', titles: /^fan-out, 128 B to 1000,/ }]
  },
  'fan-out-many.svg': {
    title: 'Broadcast of 128 B to 5,000 and 15,000: CPU time for each message',
    scales: [{ unit: 'µs/message', titles: /^fan-out, 128 B to 1?5000,/ }]
  },
  'fan-out-large.svg': {
    title: 'Larger messages, and topics: CPU time for each message',
    scales: [{ unit: 'µs/message', titles: /^fan-out, \d+ KiB|^topics/ }]
  },
  'delay.svg': {
    title: 'Delay of a broadcast, and of connections during broadcasts',
    scales: [{ unit: 'ms', titles: /^fan-out.* to 1000,/ }, { unit: 'ms', titles: /^fan-out.* to 5000,/ }, { unit: 'ms', titles: /^20 connect/ }]
  },
  'requests.svg': {
    title: 'REST, calls and echo: CPU time for each message',
    scales: [{ unit: 'µs/message', titles: /^(REST|NDJSON|call|echo)/ }]
  },
  'letters.svg': {
    title: 'Letters in each engine: rate, and CPU time for each letter',
    scales: [{ unit: 'messages/s', titles: /^letters/ }, { unit: 'µs/message', titles: /^letters/ }]
  },
  'idle.svg': {
    title: 'Idle connections: memory, CPU time to connect, connects per second',
    scales: ['bytes each', 'µs each', 'per second'].map(unit => ({ unit, titles: /idle connections/ }))
  },
  'three-nodes.svg': {
    title: 'Three nodes: CPU time for each message',
    scales: [{ unit: 'µs/message', titles: /^3 nodes/ }]
  },
  'owned.svg': {
    title: 'Three nodes: 10,000 devices of one node',
    scales: ['µs each', 'ms', 'per second', 'bytes each'].map(unit => ({ unit, titles: /^10000 devices/ }))
  }
}

/** Every bar chart of a page in Markdown, as SVG by file name. */
export function drawingsOf (page: string): Map<string, string> {
  const rows = figuresOf(page)
  return new Map(Object.entries(drawings).map(([file, { title, scales }]) => [file, barChart({
    title,
    note: 'In parentheses: the ratio to the forty lines. All axes are linear and begin at 0.',
    scales: scales.map(scale => ({ caption: captionOf(scale.unit), panels: panelsOf(rows, scale, file) }))
  })]))
}

/** The rows of a page that no bar chart shows. */
export function undrawnRows (page: string): FigureRow[] {
  const scales = Object.values(drawings).flatMap(({ scales }) => scales)
  return figuresOf(page).filter(row => !scales.some(scale => isOf(row, scale)))
}

function isOf ({ title, unit }: FigureRow, filter: RowFilter): boolean {
  return unit === filter.unit && filter.titles.test(title)
}

function panelsOf (rows: FigureRow[], filter: RowFilter, file: string): Panel[] {
  const panels = rows.filter(row => isOf(row, filter)).map(panelOf)
  if (panels.length === 0) throw new Error(`${file}: the page has no row "${filter.titles.source}" in ${filter.unit}`)
  return panels
}

function captionOf (unit: string): string {
  return `${unit}: ${/\/s$|per second/.test(unit) ? 'more' : 'less'} is better`
}

function panelOf ({ title, figures }: FigureRow): Panel {
  return { title, bars: figures.map(({ candidate, isOurs, text, value }) => ({ name: candidate, isOurs, figure: text, value })) }
}
