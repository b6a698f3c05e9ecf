import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import t from 'tap'
import { barChart } from '../bench/bar-chart.ts'
import { drawingsOf, undrawnRows } from '../bench/drawings.ts'
import { withBrowser } from './browser.ts'
import { root } from './root.ts'

const folder = join(root, 'docs/performance')
const files = readdirSync(folder)
const page = readFileSync(join(root, 'docs/performance.md'), 'utf8')

t.test('the bar charts of the page on performance show the figures of its tables', async t => {
  const drawn = drawingsOf(page)
  t.strictSame(files.toSorted(), [...drawn.keys()].toSorted())
  for (const [file, svg] of drawn) t.ok(readFileSync(join(folder, file), 'utf8') === svg, `${file} is as npm run bench:draw draws it`)
})

t.test('the page on performance shows every bar chart once, and says what it shows', async t => {
  const shown = [...page.matchAll(/^!\[Bar chart: [^\]]{20,}\]\(performance\/(\S+)\)$/gm)].map(([, file]) => file)
  t.strictSame(shown.toSorted(), files.toSorted())
})

t.test('every row that compares candidates is drawn, except one that repeats another in another unit', async t => {
  const compared = undrawnRows(page).filter(({ figures }) => figures.length > 1)
  t.strictSame(compared.map(({ unit }) => unit), ['of a REST send of the forty lines'])
})

t.test('a bar is as long as its value, on an axis from 0', async t => {
  const bars = [20, 10, 5, 0].map(value => ({ name: 'a & b', isOurs: value === 5, figure: `${value} (<1)`, value }))
  const svg = barChart({ title: 'Title', note: 'Note', scales: [{ caption: 'ms', panels: [{ title: 'Panel', bars }] }] })
  const drawn = [...svg.matchAll(/<rect class="(bar|ours)" .*?width="([\d.]+)"/g)].map(([, kind, width]) => ({ kind, width: Number(width) }))
  const full = drawn[0]!.width
  t.strictSame(drawn, [{ kind: 'bar', width: full }, { kind: 'bar', width: full / 2 }, { kind: 'ours', width: full / 4 }, { kind: 'bar', width: 0 }])
  const axis = [...svg.matchAll(/<text class="weak middle" x="([\d.]+)" y="\d+">(\d+)</g)].map(([, x, value]) => [Number(x), Number(value)] as const)
  t.strictSame(axis.map(([, value]) => value), [0, 5, 10, 15, 20])
  t.equal(axis.at(-1)![0] - axis[0]![0], full)
  t.match(svg, /<desc id="desc">Note ms\. Panel: a &amp; b 20 \(&lt;1\); /)
})

t.test('if a chart has no rows on the page, the error names the chart', async t => {
  t.throws(() => drawingsOf(page.replaceAll(/^\| letters .*\n/gm, '')), /letters\.svg: the page has no row "\^letters" in messages\/s/)
})

/** What is wrong with the picture that a browser shows. A string: the compiler knows no document. */
const problems = `(() => {
  const found = []
  const paper = document.querySelector('.paper')
  const boxes = [...document.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect(), text])
  const edge = paper.getBoundingClientRect()
  if (boxes.length < 10) found.push('no labels')
  if (performance.getEntriesByType('resource').length > 0) found.push('loads something')
  for (const [label, box, text] of boxes) {
    if (box.left < edge.left + 8 || box.right > edge.right - 8 || box.bottom > edge.bottom - 8) found.push('cut: ' + label)
    for (const [other, against] of boxes) {
      if (other !== label && box.left < against.right && against.left < box.right && box.top + 3 < against.bottom && against.top + 3 < box.bottom) found.push(label + ' covers ' + other)
    }
    for (const part of [text, ...text.children]) {
      if (contrast(getComputedStyle(part).fill, getComputedStyle(paper).fill) < 4.5) found.push('pale: ' + label)
    }
  }
  return found

  function contrast (a, b) {
    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y)
    return (high + 0.05) / (low + 0.05)
  }
  function luminance (color) {
    const [r, g, b] = color.match(/\\d+/g).map(value => value / 255).map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
})()`

withBrowser(t, 'the labels of the bar charts are neither cut nor on top of each other, and readable in light and dark', async (t, browser) => {
  const opened = await browser.open(t, 'about:blank', { viewport: { width: 720, height: 1_400 } })
  for (const file of files) {
    await opened.goto(pathToFileURL(join(folder, file)).href)
    for (const colorScheme of ['light', 'dark'] as const) {
      await opened.emulateMedia({ colorScheme })
      t.strictSame(await opened.evaluate(problems), [], `${file}, ${colorScheme}`)
    }
  }
})
