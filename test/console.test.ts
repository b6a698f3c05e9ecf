import { createServer, request as httpRequest } from 'node:http'
import { connect as connectSocket, type AddressInfo } from 'node:net'
import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import type { Page } from 'playwright-core'
import t, { type Test } from 'tap'
import devicesConsole, { type ConsoleOptions } from '../lib/console/index.ts'
import { SAMPLE_INTERVAL_MS } from '../lib/console/sampler.ts'
import devices, { type Options } from '../lib/index.ts'
import { withBrowser, type Browser, type OpenOptions } from './browser.ts'
import { connect, request, until } from './support.ts'

interface ServeOptions {
  options?: Options
  page?: ConsoleOptions
  /** The prefix of a scope around both plugins. */
  scope?: string
  server?: FastifyServerOptions
  port?: number
}

type Served = FastifyInstance & {
  url: string
  /** Ends an interval of the samples of the charts, as if `n` intervals had passed since the test began. */
  sample (n: number): void
}

/** An application with the console, on a free port; it answers `echo`, and sends each message of a device back. */
async function serve (t: Test, { options = {}, page = {}, scope = '', server = {}, port = 0 }: ServeOptions = {}): Promise<Served> {
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
async function openPage (t: Test, browser: Browser, address: string, options?: OpenOptions): Promise<Page> {
  const page = await browser.open(t, address, options)
  const { origin } = new URL(address)
  const check = (url: string) => { if (new URL(url).host !== new URL(origin).host) t.fail(`request to ${url}`) }
  page.on('request', request => check(request.url()))
  page.on('websocket', socket => check(socket.url()))
  await live(page)
  return page
}

const roster = (page: Page, id: string) => page.locator(`#roster li[data-id="${id}"]`)
const entries = (page: Page, text: string) => page.locator('#entries li').filter({ hasText: text })
const answer = (page: Page, text: string) => page.locator('#answers li').filter({ hasText: text })
const card = (page: Page, id: string) => page.getByRole('listitem', { name: id, exact: true })
const body = (page: Page) => page.locator('#composer [name=body]')
const live = (page: Page) => page.locator('#live[data-state=on]').waitFor()
const calling = (page: Page) => page.getByRole('radio', { name: 'Call' }).check()
const search = (page: Page) => page.getByLabel('Find devices', { exact: true })
const plot = (page: Page, title: string) => page.getByRole('figure').filter({ has: page.getByText(title, { exact: true }) })
const sends = (page: Page) => page.getByRole('button', { name: 'Send', exact: true }).first().click()

async function openDevice (page: Page, id: string): Promise<void> {
  await page.getByLabel('Id of the new device').fill(id)
  await page.getByRole('button', { name: 'Open a device' }).click()
  await card(page, id).getByText('connected').waitFor()
  await roster(page, id).waitFor() // otherwise it moves the other rows during a click
}

async function choose (page: Page, id: string): Promise<void> {
  await roster(page, id).getByRole('button').click()
  await page.getByRole('heading', { name: id, level: 2 }).waitFor()
}

withBrowser(t, 'the console', async (t, browser) => {
  const app = await serve(t)
  const { url } = app
  const open = async (t: Test, options?: OpenOptions) => await openPage(t, browser, `${url}/console`, options)
  // a page takes a second to open, so tests with few side effects share one
  const page = await open(t)

  await t.test('explains what to do while no device is connected', async t => {
    await page.getByText('No device is connected.').waitFor()
    t.match(await page.locator('#connect-line').textContent(), `npx wscat -c "${url.replace('http', 'ws')}/ws?deviceId=abc123"`)
    await page.getByRole('button', { name: 'Open one in this tab' }).click()
    await page.locator('.card').getByText('connected').waitFor()
    await page.getByText('No device is connected.').waitFor({ state: 'hidden' })
  })

  await t.test('refuses invalid JSON before it is sent, and writes the curl line of a request', async t => {
    await body(page).fill("{it's")
    await page.getByRole('button', { name: 'Send to all' }).click()
    await page.getByRole('alert').getByText('This is not JSON').waitFor()
    t.equal(await page.locator('#answers li').count(), 0)
    await page.getByLabel('Format').selectOption('text')
    t.equal(await page.locator('#curl').textContent(), `curl -X POST '${url}/broadcast' -H 'content-type: text/plain' -d '{it'\\''s'`)
  })

  await t.test('shows a device that connects, its details, and that it disconnects', async t => {
    const page = await open(t)
    const device = await connect(url, 'outside')
    await roster(page, 'outside').and(page.locator('[data-state=on]')).waitFor()
    await choose(page, 'outside')
    await page.locator('#presence').getByText('connected').waitFor()
    await page.locator('#facts').getByText('127.0.0.1').waitFor()
    await page.locator('#facts').getByText('jsonrpc').waitFor()
    await device.ask('subscribe', { topics: ['floors/3/#'] })
    device.notify('message', { data: { celsius: 21 } })
    await entries(page, 'message').filter({ hasText: '{"celsius":21}' }).waitFor()
    await page.locator('#facts').getByText('floors/3/#').waitFor()
    device.socket.close(4000, 'enough')
    await roster(page, 'outside').and(page.locator('[data-state=off]')).waitFor()
    await entries(page, 'disconnected').filter({ hasText: '4000 enough' }).waitFor()
    await page.locator('#presence').getByText('away').waitFor()
    await page.locator('#facts').getByText('4000 enough').waitFor()
    t.equal(await entries(page, 'connected').filter({ hasText: 'outside' }).count(), 2, 'it came and went')
  })

  await t.test('opens devices in the tab, which receive messages, answer calls, and send messages', async t => {
    const page = await open(t)
    await openDevice(page, 'here-1')
    await openDevice(page, 'here-2')
    const here = card(page, 'here-1')

    await choose(page, 'here-1')
    await body(page).fill('{"open":"door"}')
    await page.getByLabel('Wait until acknowledged').check()
    await sends(page)
    await answer(page, '{"open":"door"}').filter({ hasText: '200' }).filter({ hasText: 'delivered' }).waitFor()
    await here.locator('.received').getByText('{"open":"door"}').waitFor()

    await page.getByLabel('Wait until acknowledged').uncheck()
    await page.getByLabel('If it is away').selectOption('60')
    await page.getByLabel('Format').selectOption('text')
    await body(page).fill('plain words')
    await page.keyboard.press('Control+Enter')
    await answer(page, 'plain words').filter({ hasText: 'queued → delivered' }).waitFor()
    await here.locator('.received').getByText('plain words').waitFor()

    await calling(page)
    await body(page).fill('{"hello":"device"}')
    await page.getByRole('button', { name: 'Call', exact: true }).click()
    await answer(page, 'echo').locator('pre').getByText('{"hello":"device"}').waitFor()

    await page.getByLabel('Method', { exact: true }).fill('ask')
    await body(page).fill('{"question":"Open the door?"}')
    await page.getByRole('button', { name: 'Call', exact: true }).click()
    await here.getByText('Open the door?').waitFor()
    await here.getByRole('button', { name: 'Yes' }).click()
    await answer(page, 'ask').getByText('{"yes":true}').waitFor()

    await here.getByLabel('Message to the server').fill('good morning')
    await page.keyboard.press('Enter')
    await here.locator('.received').getByText('good morning').waitFor()
    await entries(page, 'good morning').filter({ hasText: 'here-1' }).waitFor()

    await here.getByRole('button', { name: 'Close' }).click()
    await roster(page, 'here-1').and(page.locator('[data-state=off]')).waitFor()
    await roster(page, 'here-2').and(page.locator('[data-state=on]')).waitFor()
  })

  await t.test('keeps letters for a device that is away until it is opened', async t => {
    const page = await open(t, { expected: /404/ })
    await search(page).fill('later')
    await choose(page, 'later')
    await page.getByText('no letter waits for it').waitFor()
    await sends(page)
    await answer(page, 'DEVICE_OFFLINE').filter({ hasText: '404' }).waitFor()
    await page.getByLabel('If it is away').selectOption('3600')
    for (const message of ['{"n":1}', '{"n":2}']) {
      await body(page).fill(message)
      await sends(page)
      await answer(page, message).filter({ hasText: '202' }).getByText('queued', { exact: true }).waitFor()
    }
    await page.locator('#letters-list li').nth(1).getByRole('button', { name: 'Cancel' }).click()
    await answer(page, '{"n":2}').getByText('queued → cancelled').waitFor()
    await page.locator('#letters-list li').nth(1).waitFor({ state: 'hidden' })
    await page.locator('#recipient').getByRole('button', { name: 'Open in this tab' }).click()
    await card(page, 'later').locator('.received').getByText('{"n":1}').waitFor()
    await answer(page, '{"n":1}').getByText('queued → delivered').waitFor()
    await entries(page, 'delivered').filter({ hasText: 'later' }).waitFor()
    await page.locator('#letters').waitFor({ state: 'hidden' })
    t.equal(await card(page, 'later').locator('.received li').count(), 1)
  })

  await t.test('asks before it disconnects a device or cancels all its letters', async t => {
    const page = await open(t)
    const device = await connect(url, 'asked')
    await choose(page, 'asked')
    const dialog = page.getByRole('dialog', { name: 'Disconnect asked?' })
    await page.getByRole('button', { name: 'Disconnect' }).click()
    await dialog.getByRole('button', { name: 'Keep' }).click()
    t.match(await device.ask('ping'), { result: {} })
    await page.getByRole('button', { name: 'Disconnect' }).click()
    await page.keyboard.press('Escape')
    await dialog.waitFor({ state: 'hidden' })
    t.match(await device.ask('ping'), { result: {} })
    await page.getByRole('button', { name: 'Disconnect' }).click()
    await dialog.getByRole('button', { name: 'Disconnect' }).click()
    t.match(await device.closed, { code: 4511 })

    await page.locator('#presence').getByText('away').waitFor()
    await page.getByLabel('If it is away').selectOption('3600')
    for (const text of ['one', 'two']) {
      await body(page).fill(JSON.stringify(text))
      await sends(page)
      await answer(page, text).getByText('queued', { exact: true }).waitFor()
    }
    await page.locator('#letters-list li').nth(1).waitFor()
    await page.getByRole('button', { name: 'Cancel all' }).click()
    await page.getByRole('dialog').getByRole('button', { name: 'Cancel them' }).click()
    for (const text of ['one', 'two']) await answer(page, text).getByText('queued → cancelled').waitFor()
    await page.locator('#letters').waitFor({ state: 'hidden' })
  })

  await t.test('sends to all, or to those that listen to a topic', async t => {
    const page = await open(t)
    await openDevice(page, 'reader')
    await openDevice(page, 'other')
    await card(page, 'reader').getByLabel('Topic to listen to').fill('news/+')
    await page.keyboard.press('Enter')
    await card(page, 'reader').getByRole('button', { name: 'Leave news/+' }).waitFor()
    await page.getByLabel('Only to topic').fill('news/sport')
    await body(page).fill('{"goal":1}')
    await page.getByRole('button', { name: 'Send to all' }).click()
    await answer(page, '{"goal":1}').filter({ hasText: 'sent to 1 device' }).waitFor()
    await card(page, 'reader').locator('.received').filter({ hasText: 'news/sport' }).getByText('{"goal":1}').waitFor()
    await page.getByLabel('Only to topic').fill('')
    await body(page).fill('{"all":true}')
    await page.getByRole('button', { name: 'Send to all' }).click()
    for (const id of ['reader', 'other']) await card(page, id).locator('.received').getByText('{"all":true}').waitFor()
    t.equal(await card(page, 'other').locator('.received li').count(), 1)
  })

  await t.test('shows ids, messages and answers of devices as text', async t => {
    const attack = "<img src=x onerror=document.title='taken'>"
    const page = await open(t, { expected: /422/ })
    const device = await connect(url, '__proto__')
    device.handle('echo', () => { throw { code: 42, message: attack, data: { attack } } })
    await openDevice(page, 'victim')
    await card(page, 'victim').getByLabel('Topic to listen to').fill('#')
    await page.keyboard.press('Enter')
    await card(page, 'victim').getByRole('button', { name: 'Leave #' }).waitFor()
    device.notify('subscribe', { topics: [attack] })
    device.notify('message', { data: attack })
    device.notify('message', { data: 'x\n\nevent: gap\ndata: {"type":"gap","data":{}}\n\n' })
    device.notify('publish', { topic: attack, data: attack })
    await choose(page, '__proto__')
    await entries(page, attack).waitFor()
    await entries(page, 'event: gap').and(page.locator('[data-kind=message]')).waitFor()
    await card(page, 'victim').locator('.received').getByText(attack).first().waitFor()
    await page.locator('#facts').getByText(attack).waitFor()
    await calling(page)
    await page.getByRole('button', { name: 'Call', exact: true }).click()
    await answer(page, 'DEVICE_REFUSED').filter({ hasText: attack }).waitFor()
    device.socket.close(4000, attack)
    await entries(page, 'disconnected').filter({ hasText: attack }).waitFor()
    await page.locator('#facts').getByText(`4000 ${attack}`).waitFor()
    await request({ url }, 'POST', '/devices/victim/messages', attack)
    await card(page, 'victim').locator('.received').getByText(attack, { exact: true }).nth(2).waitFor()
    t.equal(await page.title(), 'Device console')
    t.equal(await page.locator('img').count(), 1, 'none but that of the heading')
  })

  await t.test('finds devices by a part of their id, by its beginning, and by a topic', async t => {
    const page = await open(t, { expected: /400/ })
    const devices = await Promise.all(['kiosk-1', 'kiosk-2', 'old-kiosk', 'KIOSK-3'].map(id => connect(url, id)))
    await devices[1]!.ask('subscribe', { topics: ['shops/+'] })
    const found = async () => (await page.locator('#roster li[data-id]').evaluateAll(rows => rows.map((row: any) => row.dataset.id))).toSorted()

    await search(page).fill('kiosk-')
    await page.locator('#count').getByText('3 found').waitFor()
    t.strictSame(await found(), ['KIOSK-3', 'kiosk-', 'kiosk-1', 'kiosk-2'], 'and a row for letters to the id itself')
    await page.getByLabel('Find devices by').selectOption('prefix')
    await page.locator('#count').getByText('2 found').waitFor()
    t.strictSame(await found(), ['kiosk-1', 'kiosk-2'])
    const late = await connect(url, 'kiosk-4')
    await page.locator('#count').getByText('3 found').waitFor()
    await page.getByLabel('Find devices by').selectOption('topic')
    await search(page).fill('shops/berlin')
    await page.locator('#count').getByText('1 found').waitFor()
    t.strictSame(await found(), ['kiosk-2'])
    await search(page).fill('shops/#')
    await page.locator('#filter-wrong').waitFor()
    await search(page).fill('nothing')
    await page.getByText('No device listens to this topic.').waitFor()
    await page.locator('#filter-wrong').waitFor({ state: 'hidden' })
    for (const device of [...devices, late]) await device.close()
  })

  await t.test('shows some of a thousand devices and the number of the others, and finds each', async t => {
    const page = await open(t)
    const devices = await Promise.all(Array.from({ length: 1_000 }, (_, n) => connect(url, `many-${n}`)))
    await page.locator('#roster').getByText('connected').filter({ hasText: /^1,\d\d\d/ }).waitFor()
    await page.getByText(/^and \d+ more; search to find them$/).waitFor()
    t.equal(await page.locator('#roster li[data-id]').count(), 200)
    t.ok(await page.locator('#entries li').count() <= 200)
    await search(page).fill('MANY-17')
    await page.locator('#count').getByText('11 found').waitFor()
    t.strictSame((await page.locator('#roster li[data-id]').evaluateAll(rows => rows.map((row: any) => row.dataset.id))).toSorted(),
      ['MANY-17', 'many-17', ...Array.from({ length: 10 }, (_, n) => `many-17${n}`)].toSorted())
    await Promise.all(devices.map(device => device.close()))
  })

  await t.test('fits into every width, also with long texts', async t => {
    const id = 'x'.repeat(128)
    await openDevice(page, id)
    await card(page, id).getByLabel('Message to the server').fill('y'.repeat(500))
    await page.keyboard.press('Enter')
    await entries(page, 'yyyy').waitFor()
    await choose(page, id)
    await page.locator('#facts').getByText('jsonrpc').waitFor()
    await calling(page)
    await body(page).fill(JSON.stringify({ long: 'z'.repeat(500) }))
    await page.getByRole('button', { name: 'Call', exact: true }).click()
    await answer(page, 'answered').waitFor()
    const wide = `[...document.querySelectorAll('section, section *:not(option, .hidden, .sent)')].filter(({ tagName, scrollWidth, clientWidth, offsetParent }) =>
      offsetParent && clientWidth > 0 && scrollWidth > clientWidth + 1 && !['INPUT', 'TEXTAREA'].includes(tagName)).map(({ outerHTML }) => outerHTML.slice(0, 80))`
    for (const width of [320, 360, 390, 800, 1280, 1920]) {
      await page.setViewportSize({ width, height: 800 })
      t.equal(await page.evaluate('document.documentElement.scrollWidth'), width)
      t.strictSame(await page.evaluate(wide), [], `${width} pixels`)
    }
  })

  await t.test('has a language, a title, one main heading, landmarks, and a name on every control', async t => {
    await openDevice(page, 'named')
    await choose(page, 'named')
    t.equal(await page.locator('html').getAttribute('lang'), 'en')
    t.equal(await page.title(), 'Device console')
    t.equal(await page.getByRole('heading', { level: 1 }).count(), 1)
    for (const role of ['banner', 'main'] as const) t.equal(await page.getByRole(role).count(), 1, role)
    for (const name of ['The last hour of this node', 'Devices', 'named', 'Devices of this tab', 'Log']) t.equal(await page.getByRole('region', { name, exact: true }).count(), 1, name)
    const session = await page.context().newCDPSession(page)
    const { nodes } = await session.send('Accessibility.getFullAXTree')
    const controls = nodes.filter(({ ignored, role }) => !ignored && ['button', 'textbox', 'searchbox', 'combobox', 'checkbox', 'radio', 'slider', 'spinbutton', 'link', 'log', 'region'].includes(role?.value))
    t.ok(controls.length > 20)
    t.strictSame(controls.filter(({ name }) => !name?.value).map(({ role, properties }) => ({ role: role?.value, properties })), [])
  })

  await t.test('can be used with the keyboard alone, and shows where the focus is', async t => {
    const page = await open(t)
    const devices = await Promise.all(['key-1', 'key-2', 'key-3'].map(id => connect(url, id)))
    await roster(page, 'key-3').waitFor()
    const focused = async () => await page.evaluate(`(() => {
      const { activeElement: at } = document
      const visible = [at, at.nextElementSibling, at.parentElement].some(one => one && getComputedStyle(one).outlineStyle !== 'none')
      return { id: at.id || at.name || at.type || (at === document.body ? 'none' : at.localName), text: at.textContent.trim().slice(0, 40), label: at.ariaLabel, visible }
    })()`) as { id: string, text: string, label: string | null, visible: boolean }
    const tabTo = async (matches: (at: Awaited<ReturnType<typeof focused>>) => boolean) => {
      for (let n = 0; n < 60; n++) {
        await page.keyboard.press('Tab')
        const at = await focused()
        if (at.id !== 'none') t.ok(at.visible, `the focus is visible at ${at.id} ${at.label ?? at.text}`)
        if (matches(at)) return n
      }
      throw new Error('The Tab key does not lead there')
    }
    t.equal(await tabTo(({ text }) => text === 'Skip to the selected device'), 0)
    await tabTo(({ id }) => id === 'filter')
    await page.keyboard.type('key-')
    await page.locator('#count').getByText('3 found').waitFor()
    t.equal(await tabTo(({ text }) => text.startsWith('All devices')), 0, 'the list is one stop')
    await page.keyboard.press('End')
    t.match(await focused(), { text: /^key-1/ })
    await page.keyboard.press('ArrowUp')
    await page.keyboard.press('Enter')
    await page.getByRole('heading', { name: 'key-2', level: 2 }).waitFor()
    await tabTo(({ id }) => id === 'body')
    await page.keyboard.press('Control+A')
    await page.keyboard.type('{"by":"keyboard"}')
    await page.keyboard.press('Control+Enter')
    t.match(await devices[1]!.message(), { params: { data: { by: 'keyboard' } } })
    // on through the rest of the page, and round to the beginning
    await tabTo(({ text }) => text === 'Skip to the selected device')
    await page.keyboard.press('Enter')
    t.match(await focused(), { id: 'recipient' })
    for (const device of devices) await device.close()
  })

  await t.test('shows on a phone one section after the other, and goes to the chosen device', async t => {
    const page = await open(t, { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true })
    const device = await connect(url, 'phone')
    await roster(page, 'phone').getByRole('button').tap()
    await page.getByRole('heading', { name: 'phone', level: 2 }).waitFor()
    const topOf = async (id: string) => await page.locator(id).evaluate((one: any) => one.getBoundingClientRect().top as number)
    await until(async () => await topOf('#recipient') < 120)
    await page.getByRole('link', { name: 'Log' }).tap()
    await until(async () => await topOf('#log') < 844)
    const small = 'button:not([hidden]), .top nav a, #opener input, select'
    const sizes = await page.locator(small).evaluateAll(all => all.filter((one: any) => one.offsetParent).map((one: any) => [one.textContent.trim().slice(0, 20), one.getBoundingClientRect().height] as const))
    t.strictSame(sizes.filter(([, height]) => height < 28), [], 'nothing is too small for a finger')
    await device.close()
  })

  await t.test('shows that the server has stopped, and reconnects to the next', async t => {
    await page.context().close() // the shared one would complain
    const alone = await open(t, { expected: /404|ERR_|WebSocket/ })
    await openDevice(alone, 'faithful')
    await choose(alone, 'faithful')
    await alone.locator('#facts').getByText('jsonrpc').waitFor()
    await app.close()
    await alone.locator('#live[data-state=off]').waitFor()
    await alone.locator('#details-wrong').getByText('The server does not answer').waitFor()
    await alone.locator('#facts').getByText('jsonrpc').waitFor()
    await entries(alone, 'faithful').filter({ hasText: '1012 retry=' }).waitFor()
    await alone.getByText('Reconnecting').waitFor()
    await serve(t, { port: Number(new URL(url).port) })
    await live(alone)
    await entries(alone, 'gap').getByText('Events may be missing here').waitFor()
    await roster(alone, 'faithful').and(alone.locator('[data-state=on]')).waitFor()
  })
})

withBrowser(t, 'the charts of the console', async (t, browser) => {
  const app = await serve(t)
  const { url } = app
  const devices = await Promise.all(['a', 'b', 'c'].map(id => connect(url, id)))
  for (const device of devices) device.handle('read', () => ({}))
  app.sample(0)
  for (let n = 0; n < 50; n++) await app.devices.send('a', n)
  for (let n = 0; n < 10; n++) await devices[0]!.ask('echo', {})
  app.sample(1)
  for (let n = 0; n < 5; n++) await app.devices.call('b', 'read')
  await devices[2]!.close()
  app.sample(2)
  const { body: { samples } } = await request({ url }, 'GET', '/console/samples')

  const page = await browser.open(t, `${url}/console`)
  await page.clock.install()
  await page.reload()
  await live(page)
  const legend = async (title: string) => await plot(page, title).locator('dd').allTextContents()

  await t.test('have the numbers of the server', async t => {
    t.match(samples, [
      { connected: 3 },
      { connected: 3, messages: { in: 1, out: 6 }, calls: { in: { count: 10 }, out: { count: 0 } } },
      { connected: 2, messages: { in: 0.5, out: 0.5 }, calls: { in: { count: 0 }, out: { count: 5 } } }
    ], 'ten calls and their answers, fifty messages, five calls and their answers')
    t.strictSame(await legend('Connected to this node'), ['2'])
    t.strictSame(await legend('Messages'), ['0.5/s', '0.5/s'])
    t.strictSame(await legend('Calls of devices'), ['–', '–'])
    t.match(await legend('Calls to devices'), [/^[\d.]+ ms$/, /^[\d.]+ ms$/])
    const line = await plot(page, 'Connected to this node').locator('path.series-0').getAttribute('d')
    t.equal(line, 'M357.5 0h.01L358.5 0L359.5 33.3', 'three of three, then two of three')
    t.equal(await plot(page, 'Calls of devices').locator('path.series-0').evaluate(path => path.getAttribute('d')!.match(/M/g)!.length), 1, 'a single sample is a dot')
  })

  await t.test('show the values of the moment under the pointer, in all charts', async t => {
    const canvas = plot(page, 'Messages').locator('.canvas')
    const { width } = (await canvas.boundingBox())!
    await canvas.hover({ position: { x: width * 358.5 / 360, y: 20 } })
    await plot(page, 'Messages').getByText('6/s').waitFor()
    t.strictSame(await legend('Messages'), ['1/s', '6/s'])
    t.strictSame(await legend('Connected to this node'), ['3'])
    t.match(await plot(page, 'Connected to this node').locator('.moment').textContent(), /^\d\d:\d\d:\d\d$/)
    await canvas.hover({ position: { x: 10, y: 20 } })
    await plot(page, 'Messages').getByText('no values').waitFor()
    await page.getByRole('heading', { level: 1 }).hover()
    await plot(page, 'Messages').getByText('0.5/s').first().waitFor()
  })

  await t.test('are sliders for the keyboard and for screen readers', async t => {
    const slider = page.getByRole('slider', { name: 'Messages, moment of the last hour' })
    t.equal(await slider.getAttribute('aria-valuetext'), 'latest: received 0.5/s, sent 0.5/s')
    await slider.focus()
    await page.keyboard.press('ArrowLeft')
    t.match(await slider.getAttribute('aria-valuetext'), /^\d\d:\d\d:\d\d: received 1\/s, sent 6\/s$/)
    await page.keyboard.press('ArrowRight')
    t.match(await slider.getAttribute('aria-valuetext'), /^latest/)
  })

  await t.test('are a table as well', async t => {
    await page.getByText('The numbers as a table').click()
    await page.getByRole('table').waitFor()
    const rows = page.getByRole('table').locator('tbody tr')
    t.equal(await rows.count(), 3)
    t.match(await rows.nth(1).locator('td').allTextContents(), ['3', '1/s', '6/s', '–', '–', / ms$/, / ms$/])
  })

  await t.test('get new values while the page is open', async t => {
    await connect(url, 'd')
    app.sample(3)
    await page.clock.fastForward(SAMPLE_INTERVAL_MS * 2)
    await plot(page, 'Connected to this node').locator('dd').getByText('3').waitFor()
    t.equal(await page.getByRole('table').locator('tbody tr').count(), 4)
  })
})

withBrowser(t, 'the console of an application with a guard', async (t, browser) => {
  const TOKEN = 'open-sesame'
  const options: Options = {
    authenticate: ({ token }) => token === TOKEN,
    guard: ({ headers }) => headers.authorization === `Bearer ${TOKEN}`,
    authorize: (_caller, { action }) => action !== 'disconnect'
  }

  await t.test('asks for the token, and keeps it for this tab', async t => {
    const { url } = await serve(t, { options })
    t.equal((await request({ url }, 'GET', '/console/')).status, 200, 'the page itself has no secrets')
    t.equal((await request({ url }, 'GET', '/console/samples')).status, 401)
    t.equal((await request({ url }, 'GET', '/console/samples', undefined, { authorization: 'Bearer wrong' })).status, 403)

    const page = await browser.open(t, `${url}/console`, { expected: /40[13]/ })
    const dialog = page.getByRole('dialog', { name: 'asks for a token' })
    await dialog.getByLabel('Token').fill('wrong')
    await page.keyboard.press('Enter')
    await dialog.getByText('The server refused that token').waitFor()
    await page.keyboard.press('Escape')
    await page.locator('#live').getByText('The server requires a token').waitFor()
    await page.getByRole('button', { name: 'Enter a token' }).click()
    await dialog.getByLabel('Token').fill(TOKEN)
    await page.keyboard.press('Enter')
    await live(page)
    t.ok(await page.getByRole('button', { name: 'Enter a token' }).isHidden())
    await openDevice(page, 'mine')
    await choose(page, 'mine')
    await sends(page)
    await card(page, 'mine').locator('.received').getByText('{"hello":"world"}').waitFor()
    t.notMatch(await page.locator('#curl').textContent(), TOKEN)
    t.strictSame(await page.evaluate('Object.keys(localStorage).length + document.cookie.length'), 0)

    await page.reload()
    await live(page)
    t.notOk(await dialog.isVisible(), 'this tab remembers it')
    await page.getByRole('button', { name: 'Forget the token' }).click()
    await dialog.waitFor()
  })

  await t.test('shows what authorize refuses, and does not ask for the token again', async t => {
    const { url } = await serve(t, { options })
    const page = await browser.open(t, `${url}/console`, { expected: /40[13]/ })
    await page.locator('#token').fill(TOKEN)
    await page.keyboard.press('Enter')
    await live(page)
    await openDevice(page, 'mine')
    await choose(page, 'mine')
    await page.getByRole('button', { name: 'Disconnect' }).click()
    await page.getByRole('dialog').getByRole('button', { name: 'Disconnect' }).click()
    await page.locator('#details-wrong').getByText('Not allowed').waitFor()
    t.notOk(await page.getByRole('dialog').isVisible())
  })

  await t.test('says in the log that events may be missing if it was not connected, even if it had seen none', async t => {
    const app = await serve(t)
    const page = await openPage(t, browser, `${app.url}/console`, { expected: /ERR_/ })
    app.server.closeAllConnections()
    await entries(page, 'gap').getByText('the page was not connected').waitFor()
    await live(page)
  })

  await t.test('says what the caller lacks if it may not read events', async t => {
    const { url } = await serve(t, { options: { authorize: (_caller, { action }) => action !== 'events' } })
    const page = await browser.open(t, `${url}/console`, { expected: /403/ })
    await page.locator('#live').getByText('GET /events: Not allowed').waitFor()
    t.notOk(await page.getByRole('dialog').isVisible())
  })
})

withBrowser(t, 'the console finds the routes of the plugin', async (t, browser) => {
  /** Opens the page, and makes a device of the tab receive a message. */
  const works = async (t: Test, address: string) => {
    const page = await openPage(t, browser, address)
    await openDevice(page, 'near')
    await choose(page, 'near')
    await sends(page)
    await card(page, 'near').locator('.received').getByText('{"hello":"world"}').waitFor()
    await page.locator('#facts').getByText('jsonrpc').waitFor()
  }

  await t.test('at the root', async t => {
    const { url } = await serve(t, { page: { prefix: '/' } })
    await works(t, url)
  })

  await t.test('with a prefix for each, in a scope with a prefix', async t => {
    const { url } = await serve(t, { scope: '/v1', options: { prefix: '/iot', path: '/socket' }, page: { prefix: '/admin/devices' } })
    await works(t, `${url}/v1/admin/devices`)
  })

  await t.test('behind a proxy that removes the beginning of the path', async t => {
    const { url } = await serve(t, { options: { prefix: '/iot' } })
    await works(t, `${await proxy(t, url, '/gateways/7')}/console`)
  })
})

/** A proxy that removes a prefix from the path; resolves with the address of the prefix. */
async function proxy (t: Test, target: string, prefix: string): Promise<string> {
  const { port } = new URL(target)
  const shorter = (url = '') => url.slice(prefix.length)
  const server = createServer((request, response) => {
    const onward = httpRequest({ port, host: '127.0.0.1', path: shorter(request.url), method: request.method, headers: request.headers }, answer => {
      response.writeHead(answer.statusCode!, answer.headers)
      answer.pipe(response)
    })
    onward.on('error', () => response.destroy())
    response.on('close', () => onward.destroy())
    request.pipe(onward)
  })
  server.on('upgrade', (request, socket) => {
    const onward = connectSocket(Number(port), '127.0.0.1')
    const headers = Object.entries(request.headers).map(([name, value]) => `${name}: ${String(value)}\r\n`).join('')
    onward.write(`GET ${shorter(request.url)} HTTP/1.1\r\n${headers}\r\n`)
    socket.on('error', () => {}).pipe(onward.on('error', () => {})).pipe(socket)
  })
  await new Promise<void>(resolve => { server.listen(0, '127.0.0.1', resolve) })
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}${prefix}`
}

t.test('the files of the page', async t => {
  await t.test('are served with their types, and no other file is', async t => {
    const { url } = await serve(t)
    const types: Record<string, string> = {
      '/': 'text/html; charset=utf-8',
      '/page/style.css': 'text/css; charset=utf-8',
      '/page/page.js': 'text/javascript; charset=utf-8',
      '/page/icon.svg': 'image/svg+xml',
      '/sdk/client/index.js': 'text/javascript; charset=utf-8',
      '/sdk/protocol/peer.js': 'text/javascript; charset=utf-8'
    }
    for (const [path, type] of Object.entries(types)) {
      const { status, headers } = await request({ url }, 'GET', `/console${path}`)
      t.equal(status, 200, path)
      t.equal(headers.get('content-type'), type, path)
      t.equal(headers.get('x-content-type-options'), 'nosniff', path)
      t.match(headers.get('content-security-policy'), "default-src 'none'", path)
      t.equal((await request({ url }, 'GET', `/console${path}`, undefined, { 'if-none-match': headers.get('etag')! })).status, 304, path)
    }
    for (const path of ['/page/', '/page/index.html', '/page/..%2findex.js', '/page/../../package.json', '/page/%2e%2e/%2e%2e/package.json', '/sdk/index.js', '/sdk/storage/disk/index.js', '/sdk/client/index.js.map']) {
      t.equal((await request({ url }, 'GET', `/console${path}`)).status, 404, path)
    }
  })

  await t.test('are found without the last slash of the address too', async t => {
    for (const server of [{}, { routerOptions: { ignoreTrailingSlash: true } }, { routerOptions: { ignoreDuplicateSlashes: true } }] as FastifyServerOptions[]) {
      const { url } = await serve(t, { server })
      const response = await fetch(`${url}/console?from=mail`, { redirect: 'manual' })
      t.match({ status: response.status, location: response.headers.get('location') }, { status: 302, location: 'console/' })
      t.equal((await request({ url }, 'GET', '/console?from=mail')).status, 200)
    }
  })

  await t.test('are behind the guard too if the guard needs no script', async t => {
    const { url } = await serve(t, { page: { guardFiles: true }, options: { guard: ({ headers }) => headers.cookie === 'session=1' } })
    for (const path of ['/', '/page/page.js', '/samples']) {
      t.equal((await request({ url }, 'GET', `/console${path}`)).status, 401, path)
      t.equal((await request({ url }, 'GET', `/console${path}`, undefined, { cookie: 'session=1' })).status, 200, path)
    }
  })

  await t.test('say nothing about the devices: what they show is for this machine only until there is a guard', async t => {
    const { url } = await serve(t)
    for (const [headers, code] of [[{ 'x-forwarded-for': '203.0.113.9' }, 'PROTECTED_MODE'], [{ origin: 'https://elsewhere.example' }, 'ORIGIN_REFUSED']] as const) {
      t.match(await request({ url }, 'GET', '/console/samples', undefined, headers), { status: 403, body: { code } })
    }
    t.equal((await request({ url }, 'GET', '/console/samples')).headers.get('cache-control'), 'no-store')
  })
})

t.test('authorize decides who may use the console', async t => {
  const asked: string[] = []
  const { url } = await serve(t, { options: { authorize: (_caller, { action }) => { asked.push(action); return action !== 'console' } } })
  t.match(await request({ url }, 'GET', '/console/samples'), { status: 403, body: { code: 'FORBIDDEN' } })
  t.strictSame(asked, ['console'])
})

t.test('the console is registered after the plugin, with REST routes, and with options that there are', async t => {
  const register = async (options: Options | undefined, page: object) => {
    const app = Fastify()
    t.teardown(() => app.close())
    if (options) await app.register(devices, options)
    await app.register(devicesConsole, page)
    await app.ready()
  }
  await t.rejects(register(undefined, {}), { message: /fastify-devices/ })
  await t.rejects(register({ rest: false }, {}), { message: /rest: false/ })
  await t.rejects(register({}, { guardfiles: true }), { message: /"guardfiles"/ })
  await t.resolves(register({}, { prefix: '/c', guardFiles: false, logLevel: 'warn', logSerializers: {} }))
})
