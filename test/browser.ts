import { chromium, type Browser } from 'playwright-core'
import type { Test } from 'tap'

const FLAGS = ['--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']

/** A real browser with nothing in it yet, closed when the test ends. What goes wrong in one of its pages fails the test. */
export async function launch (t: Pick<Test, 'teardown' | 'fail'>, path: string): Promise<Browser> {
  const browser = await chromium.launch({ executablePath: path, headless: true, chromiumSandbox: false, args: FLAGS })
  t.teardown(() => browser.close())
  browser.on('context', context => context.on('weberror', error => t.fail(`in the page: ${error.error().stack ?? error.error()}`)))
  return browser
}
