import { chromium, type Browser as Chromium, type BrowserContextOptions, type Page } from 'playwright-core'
import type { Test } from 'tap'
import { withProgram } from './programs.ts'

const ARGS = [
  '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync'
]
const STEP_TIMEOUT_MS = 10_000

export interface OpenOptions extends BrowserContextOptions {
  /** Console errors that the test expects, such as that of a refused request. */
  expected?: RegExp
}

/** A browser with an empty profile, closed when the test ends. Uncaught errors in its pages fail the test. */
export async function launch (t: Pick<Test, 'teardown' | 'fail'>, executablePath: string): Promise<Chromium> {
  const chrome = await chromium.launch({ executablePath, args: ARGS })
  t.teardown(() => chrome.close())
  chrome.on('context', context => context.on('weberror', error => t.fail(`uncaught error in the page: ${error.error().stack ?? error.error()}`)))
  return chrome
}

/** A test with a browser of its own. */
export function withBrowser (t: Test, title: string, body: (t: Test, browser: Browser) => Promise<void>, options?: object): void {
  withProgram(t, 'chromium', title, async (t, executablePath) => await body(t, new Browser(await launch(t, executablePath))), options)
}

/** Opens each page in a context of its own. Console errors of a page fail its test. */
export class Browser {
  readonly #chrome: Chromium

  constructor (chrome: Chromium) {
    this.#chrome = chrome
  }

  async open (t: Test, url: string, { expected, ...options }: OpenOptions = {}): Promise<Page> {
    const context = await this.#chrome.newContext(options)
    t.teardown(() => context.close())
    context.setDefaultTimeout(STEP_TIMEOUT_MS)
    const page = await context.newPage()
    page.on('console', message => {
      if (message.type() === 'error' && !expected?.test(message.text())) t.fail(`console error: ${message.text()}`)
    })
    await page.goto(url)
    return page
  }
}
