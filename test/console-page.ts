import type { AddressInfo } from 'node:net'
import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import type { Page } from 'playwright-core'
import type { Test } from 'tap'
import devicesConsole, { type ConsoleOptions } from '../lib/console/index.ts'
import { SAMPLE_INTERVAL_MS } from '../lib/console/sampler.ts'
import devices, { type Options } from '../lib/index.ts'
import type { Browser, OpenOptions } from './browser.ts'

interface ServeOptions {
  options?: Options
  page?: ConsoleOptions
  /** The prefix of a scope around both plugins. */
  scope?: string
  server?: FastifyServerOptions
  port?: number
}

export type Served = FastifyInstance & {
  url: string
  /** Ends an interval of the samples of the charts, as if `n` intervals had passed since the test began. */
  sample (n: number): void
}

/** An application with the console, on a free port; it answers `echo`, and sends each message of a device back. */
export async function serve (t: Test, { options = {}, page = {}, scope = '', server = {}, port = 0 }: ServeOptions = {}): Promise<Served> {
  const app = Fastify({ routerOptions: { maxParamLength: 128 }, return503OnClosing: false, ...server } as FastifyServerOptions) as FastifyInstance
  let sample: () => void
  const addPlugins = async (app: FastifyInstance) => {
    await app.register(devices, options)
    sample = await withIntervals(async () => { await app.register(devicesConsole, page) })
    app.devices.handle('echo', params => params)
    app.devices.on('message', (data, device) => { device.send(data) })
  }
  if (scope === '') await addPlugins(app)
  else await app.register(addPlugins, { prefix: scope })
  t.teardown(() => app.close())
  await app.listen({ port, host: '127.0.0.1' })
  const began = { date: Date.now() - 600_000, time: performance.now() }
  const sampleAt = (n: number) => {
    const { now: dateNow } = Date
    Date.now = () => began.date + n * SAMPLE_INTERVAL_MS
    performance.now = () => began.time + n * SAMPLE_INTERVAL_MS
    sample()
    Date.now = dateNow
    Reflect.deleteProperty(performance, 'now') // that of its prototype is left
  }
  return Object.assign(app, { url: `http://127.0.0.1:${(app.server.address() as AddressInfo).port}`, sample: sampleAt })
}

/** Calls the function, and returns the callback of the interval of samples that it has started, which never runs by itself. */
async function withIntervals (register: () => Promise<void>): Promise<() => void> {
  const { setInterval } = globalThis
  let sample: () => void
  globalThis.setInterval = ((callback: () => void, delay: number) => {
    if (delay !== SAMPLE_INTERVAL_MS) return setInterval(callback, delay)
    sample = callback
    return setInterval(() => {}, 2 ** 30)
  }) as typeof setInterval
  await register()
  globalThis.setInterval = setInterval
  return sample!
}

/** Opens the page and waits until it is live. Requests to other servers fail the test. */
export async function openPage (t: Test, browser: Browser, address: string, options?: OpenOptions): Promise<Page> {
  const page = await browser.open(t, address, options)
  const { origin } = new URL(address)
  const check = (url: string) => { if (new URL(url).host !== new URL(origin).host) t.fail(`request to ${url}`) }
  page.on('request', request => check(request.url()))
  page.on('websocket', socket => check(socket.url()))
  await live(page)
  return page
}

export const roster = (page: Page, id: string) => page.locator(`#roster li[data-id="${id}"]`)
export const entries = (page: Page, text: string) => page.locator('#entries li').filter({ hasText: text })
export const answer = (page: Page, text: string) => page.locator('#answers li').filter({ hasText: text })
export const card = (page: Page, id: string) => page.getByRole('listitem', { name: id, exact: true })
export const body = (page: Page) => page.locator('#composer [name=body]')
export const live = (page: Page) => page.locator('#live[data-state=on]').waitFor()
export const calling = (page: Page) => page.getByRole('radio', { name: 'Call' }).check()
export const search = (page: Page) => page.getByLabel('Find devices', { exact: true })
export const plot = (page: Page, title: string) => page.getByRole('figure').filter({ has: page.getByText(title, { exact: true }) })
export const sends = (page: Page) => page.getByRole('button', { name: 'Send', exact: true }).first().click()

export async function openDevice (page: Page, id: string): Promise<void> {
  await page.getByLabel('Id of the new device').fill(id)
  await page.getByRole('button', { name: 'Open a device' }).click()
  await card(page, id).getByText('connected').waitFor()
  await roster(page, id).waitFor() // otherwise it moves the other rows during a click
}

export async function choose (page: Page, id: string): Promise<void> {
  await roster(page, id).getByRole('button').click()
  await page.getByRole('heading', { name: id, level: 2 }).waitFor()
}
