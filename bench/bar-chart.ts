/** A bar chart: scales below each other, each with an axis of its own. */
export interface Chart {
  title: string
  note: string
  scales: Scale[]
}

/** Panels that share an axis. */
export interface Scale {
  /** The unit, and which end of the axis is the better one. */
  caption: string
  panels: Panel[]
}

/** A group of bars that are compared. */
export interface Panel {
  title: string
  bars: Bar[]
}

export interface Bar {
  name: string
  /** Drawn in the color of emphasis. */
  isOurs: boolean
  /** The text at the end of the bar: the value, then in parentheses anything else. */
  figure: string
  value: number
}

const WIDTH = 720
const MARGIN = 20
/** Where the bars begin and where the axis ends. The names are left of it, the figures of the longest bars right of it. */
const BARS_LEFT = 140
const BARS_RIGHT = 590
const BAR_PITCH = 19
const BAR_HEIGHT = 13
const LEAST_STEPS = 3
const STEPS = [5, 2.5, 2, 1]

// A viewer shows the picture on its own background, light or dark, whatever the theme of the page around it: so the picture has one of its own.
const STYLE = `
svg { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Helvetica, Arial, sans-serif; fill: #1f2328 }
.paper { fill: #fff; stroke: #d1d9e0 } .title { font-size: 16px; font-weight: 600 } .strong { font-weight: 600 } .weak { fill: #59636e }
.grid { stroke: #d1d9e0 } .zero { stroke: #818b98 } .bar { fill: #9aa4af } .ours { fill: #0969da } .end { text-anchor: end } .middle { text-anchor: middle }
.figure { stroke: #fff; stroke-width: 5px; paint-order: stroke }
@media (prefers-color-scheme: dark) {
  svg { fill: #f0f6fc } .paper { fill: #0d1117; stroke: #3d444d } .weak { fill: #9198a1 }
  .grid { stroke: #2f353d } .zero { stroke: #656c76 } .bar { fill: #656c76 } .ours { fill: #4493f8 } .figure { stroke: #0d1117 }
}`

/** The chart as an SVG document of its own, which loads nothing. */
export function barChart (chart: Chart): string {
  const lines: string[] = [text(MARGIN, 34, chart.title, 'title'), text(MARGIN, 55, chart.note, 'weak')]
  const height = chart.scales.reduce((y, scale) => drawScale(lines, scale, y) + MARGIN, 68)
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${height}" viewBox="0 0 ${WIDTH} ${height}" role="img" aria-labelledby="title desc">
<title id="title">${escaped(chart.title)}</title>
<desc id="desc">${escaped(described(chart))}</desc>
<style>${STYLE}
</style>
<rect class="paper" x="0.5" y="0.5" width="${WIDTH - 1}" height="${height - 1}" rx="6"/>
${lines.join('\n')}
</svg>
`
}

/** Draws the axis and the panels below `top`; returns where they end. */
function drawScale (lines: string[], { caption, panels }: Scale, top: number): number {
  const ticks = ticksFor(Math.max(...panels.flatMap(({ bars }) => bars.map(({ value }) => value))))
  const xOf = (value: number) => rounded(BARS_LEFT + (BARS_RIGHT - BARS_LEFT) * value / ticks.at(-1)!)
  lines.push(text(MARGIN, top + 20, caption, 'strong'), ...ticks.map(tick => text(xOf(tick), top + 41, String(tick), 'weak middle')))
  return panels.reduce((y, panel) => drawPanel(lines, panel, y, ticks.map(xOf), xOf), top + 46)
}

function drawPanel (lines: string[], { title, bars }: Panel, top: number, gridlines: number[], xOf: (value: number) => number): number {
  const [first, last] = [top + 26, top + 26 + bars.length * BAR_PITCH]
  lines.push(text(MARGIN, top + 18, title, 'weak'))
  lines.push(...gridlines.map((x, at) => `<path class="${at === 0 ? 'zero' : 'grid'}" d="M${x} ${first}V${last}"/>`))
  for (const [at, { name, isOurs, figure, value }] of bars.entries()) {
    const y = first + at * BAR_PITCH
    const strong = isOurs ? ' strong' : ''
    lines.push(
      text(BARS_LEFT - 8, y + 14, name, `end${strong}`),
      `<rect class="${isOurs ? 'ours' : 'bar'}" x="${BARS_LEFT}" y="${y + (BAR_PITCH - BAR_HEIGHT) / 2}" width="${rounded(xOf(value) - BARS_LEFT)}" height="${BAR_HEIGHT}"/>`,
      text(xOf(value) + 7, y + 14, figure, `figure${strong}`).replace(/ \(.*\)/, '<tspan class="weak">$&</tspan>')
    )
  }
  return last + 4
}

/** Round values from 0 to the first that is not below `largest`. */
function ticksFor (largest: number): number[] {
  const magnitude = 10 ** Math.floor(Math.log10(largest))
  const step = STEPS.map(step => step * magnitude).find(step => largest / step >= LEAST_STEPS) ?? magnitude / 2
  return Array.from({ length: Math.ceil(largest / step) + 1 }, (_, at) => Number((at * step).toPrecision(3)))
}

/** What the picture shows, in words. */
function described ({ note, scales }: Chart): string {
  const sentences = scales.flatMap(({ caption, panels }) => [`${caption}.`, ...panels.map(({ title, bars }) => `${title}: ${bars.map(({ name, figure }) => `${name} ${figure}`).join('; ')}.`)])
  return [note, ...sentences].join(' ')
}

function text (x: number, y: number, content: string, classes: string): string {
  return `<text class="${classes}" x="${x}" y="${y}">${escaped(content)}</text>`
}

function escaped (content: string): string {
  return content.replaceAll('&', '&amp;').replaceAll('<', '&lt;')
}

function rounded (value: number): number {
  return Math.round(value * 10) / 10
}
