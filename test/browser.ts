import { chromium, type Browser as Chromium, type BrowserContextOptions, type Page } from 'playwright-core'
import type { Test } from 'tap'
import { withProgram } from './programs.ts'

const ARGS = [
  '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync'
]
/** The longest that a step on a page may take. */
const STEP_TIMEOUT_MS = 10_000

export interface OpenOptions extends BrowserContextOptions {
  /** Errors on the console that belong to the test, as that of a request which is refused. */
  expected?: RegExp
}

/** A real browser with nothing in it yet, closed when the test ends. What goes wrong in one of its pages fails the test. */
export async function launch (t: Pick<Test, 'teardown' | 'fail'>, executablePath: string): Promise<Chromium> {
  const chrome = await chromium.launch({ executablePath, args: ARGS })
  t.teardown(() => chrome.close())
  chrome.on('context', context => context.on('weberror', error => t.fail(`The page failed: ${error.error().stack ?? error.error()}`)))
  return chrome
}

/** A test that needs a browser: it gets one of its own, with an empty profile, that closes with it. */
export function withBrowser (t: Test, title: string, body: (t: Test, browser: Browser) => Promise<void>, options?: object): void {
  withProgram(t, 'chromium', title, async (t, executablePath) => await body(t, new Browser(await launch(t, executablePath))), options)
}

/** Opens pages, each as if in a browser of its own. What a page complains of fails the test it was opened for. */
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
      if (message.type() === 'error' && !expected?.test(message.text())) t.fail(`The page complains: ${message.text()}`)
    })
    await page.goto(url)
    return page
  }
}
