import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import type { Page } from 'playwright-core'
import t, { type Test } from 'tap'
import { withBrowser, type OpenOptions } from './browser.ts'
import { root } from './root.ts'
import { connect, request } from './support.ts'

const program = join(root, 'dist/example/gateway.js')

interface Running {
  url: string
  /** Ends it as Ctrl+C does; resolves with its exit code. */
  stop (): Promise<number | null>
}

/** The example gateway, in a process of its own on a free port. */
async function gateway (t: Test, env: Record<string, string> = {}): Promise<Running> {
  const { NODE_OPTIONS: _, TOKEN: __, ...inherited } = process.env
  const child = spawn(process.execPath, [program], {
    env: { ...inherited, PORT: '0', DATA: t.testdir(), ...env }, stdio: ['ignore', 'pipe', 'inherit']
  })
  const exited = once(child, 'exit').then(([code]) => code as number | null)
  const stop = async () => {
    child.kill('SIGTERM')
    return await exited
  }
  t.teardown(stop)
  let printed = ''
  for (;;) {
    const [chunk] = await Promise.race([once(child.stdout, 'data'), exited.then(() => { throw new Error(`The gateway ended: ${printed}`) })])
    printed += String(chunk)
    const url = /Listening on (http:\S+:\d+)/.exec(printed)?.[1]
    if (url) return { url, stop }
  }
}

const roster = (page: Page, id: string) => page.locator(`#roster li[data-id="${id}"]`)
const entries = (page: Page, text: string) => page.locator('#entries li').filter({ hasText: text })
const answer = (page: Page, text: string) => page.locator('#answers li').filter({ hasText: text })
const card = (page: Page, id: string) => page.getByRole('listitem', { name: id, exact: true })
const body = (page: Page) => page.locator('#composer [name=body]')
const live = (page: Page) => page.locator('#live[data-state=on]').waitFor()

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

withBrowser(t, 'the page of the gateway', async (t, browser) => {
  const { url, stop } = await gateway(t)
  const open = async (t: Test, options?: OpenOptions) => {
    const page = await browser.open(t, url, options)
    await live(page)
    return page
  }
  // a page takes a second to open, so tests with few side effects share one
  const page = await open(t)

  await t.test('explains what to do while no device is connected', async t => {
    await page.getByText('No device is connected yet').waitFor()
    t.match(await page.locator('#connect-line').textContent(), `npx wscat -c "${url.replace('http', 'ws')}/ws?deviceId=abc123"`)
    await page.getByRole('button', { name: 'Open one in this tab' }).click()
    await page.locator('.card').getByText('connected').waitFor()
    await page.getByText('No device is connected yet').waitFor({ state: 'hidden' })
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
    await page.getByRole('button', { name: 'Send', exact: true }).first().click()
    await answer(page, '{"open":"door"}').filter({ hasText: '200' }).filter({ hasText: 'delivered' }).waitFor()
    await here.locator('.received').getByText('{"open":"door"}').waitFor()

    await page.getByLabel('Wait until acknowledged').uncheck()
    await page.getByLabel('If it is away').selectOption('60')
    await page.getByLabel('Format').selectOption('text')
    await body(page).fill('plain words')
    await page.keyboard.press('Control+Enter')
    await answer(page, 'plain words').filter({ hasText: 'queued → delivered' }).waitFor()
    await here.locator('.received').getByText('plain words').waitFor()

    await page.getByLabel('Call a method').check()
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
    await entries(page, '"good morning"').filter({ hasText: 'here-1' }).waitFor()

    await here.getByRole('button', { name: 'Close' }).click()
    await roster(page, 'here-1').and(page.locator('[data-state=off]')).waitFor()
    await roster(page, 'here-2').and(page.locator('[data-state=on]')).waitFor()
  })

  await t.test('keeps a letter for a device that is away until it is opened', async t => {
    const page = await open(t, { expected: /404/ })
    await page.getByLabel('Filter devices').fill('later')
    await choose(page, 'later')
    await page.getByText('nothing is known of it').waitFor()
    await page.getByRole('button', { name: 'Send', exact: true }).click()
    await answer(page, 'DEVICE_OFFLINE').filter({ hasText: '404' }).waitFor()
    await page.getByLabel('If it is away').selectOption('3600')
    for (const message of ['{"n":1}', '{"n":2}']) {
      await body(page).fill(message)
      await page.getByRole('button', { name: 'Send', exact: true }).click()
      await answer(page, message).filter({ hasText: '202' }).getByText('queued', { exact: true }).waitFor()
    }
    await page.locator('#letters-list li').nth(1).getByRole('button', { name: 'Take back' }).click()
    await answer(page, '{"n":2}').getByText('queued → cancelled').waitFor()
    await page.locator('#letters-list li').nth(1).waitFor({ state: 'hidden' })
    await page.locator('#recipient').getByRole('button', { name: 'Open in this tab' }).click()
    await card(page, 'later').locator('.received').getByText('{"n":1}').waitFor()
    await answer(page, '{"n":1}').getByText('queued → delivered').waitFor()
    await entries(page, 'delivered').filter({ hasText: 'later' }).waitFor()
    await page.locator('#letters').waitFor({ state: 'hidden' })
    t.equal(await card(page, 'later').locator('.received li').count(), 1)
  })

  await t.test('sends to all, or to those who listen to a topic', async t => {
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
    device.notify('publish', { topic: attack, data: attack })
    await choose(page, '__proto__')
    await entries(page, attack).waitFor()
    await card(page, 'victim').locator('.received').getByText(attack).first().waitFor()
    await page.locator('#facts').getByText(attack).waitFor()
    await page.getByLabel('Call a method').check()
    await page.getByRole('button', { name: 'Call', exact: true }).click()
    await answer(page, 'DEVICE_REFUSED').filter({ hasText: attack }).waitFor()
    device.socket.close(4000, attack)
    await entries(page, 'disconnected').filter({ hasText: attack }).waitFor()
    await page.locator('#facts').getByText(`4000 ${attack}`).waitFor()
    await request({ url }, 'POST', '/devices/victim/messages', attack)
    await card(page, 'victim').locator('.received').getByText(attack, { exact: true }).nth(2).waitFor()
    t.equal(await page.title(), 'Gateway')
    t.equal(await page.locator('img').count(), 1, 'none but that of the heading')
  })

  await t.test('shows some of hundreds of devices and the number of the others, and finds each', async t => {
    const page = await open(t)
    const devices = await Promise.all(Array.from({ length: 300 }, (_, n) => connect(url, `many-${n}`)))
    await page.locator('#roster').getByText('connected').filter({ hasText: /^[3-9]\d\d/ }).waitFor()
    await page.getByText(/^and \d+ more; filter to find them$/).waitFor()
    t.equal(await page.locator('#roster li[data-id]').count(), 200)
    t.ok(await page.locator('#entries li').count() <= 200)
    await page.getByLabel('Filter devices').fill('MANY-17')
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
    await page.getByLabel('Call a method').check()
    await body(page).fill(JSON.stringify({ long: 'z'.repeat(500) }))
    await page.getByRole('button', { name: 'Call', exact: true }).click()
    await answer(page, 'answered').waitFor()
    const wide = `[...document.querySelectorAll('section, section *:not(option, .hidden, .sent)')].filter(({ tagName, scrollWidth, clientWidth, offsetParent }) =>
      offsetParent && clientWidth > 0 && scrollWidth > clientWidth + 1 && !['INPUT', 'TEXTAREA'].includes(tagName)).map(({ outerHTML }) => outerHTML.slice(0, 80))`
    for (const width of [360, 390, 800, 1280]) {
      await page.setViewportSize({ width, height: 800 })
      t.equal(await page.evaluate('document.documentElement.scrollWidth'), width)
      t.strictSame(await page.evaluate(wide), [], `${width} pixels`)
    }
  })

  await t.test('has a language, a title, one main heading, landmarks, and a name on every control', async t => {
    await openDevice(page, 'named')
    await choose(page, 'named')
    t.equal(await page.locator('html').getAttribute('lang'), 'en')
    t.equal(await page.title(), 'Gateway')
    t.equal(await page.getByRole('heading', { level: 1 }).count(), 1)
    for (const role of ['banner', 'main'] as const) t.equal(await page.getByRole(role).count(), 1, role)
    for (const name of ['Devices', 'named', 'In this tab', 'Log']) t.equal(await page.getByRole('region', { name, exact: true }).count(), 1, name)
    const session = await page.context().newCDPSession(page)
    const { nodes } = await session.send('Accessibility.getFullAXTree')
    const controls = nodes.filter(({ ignored, role }) => !ignored && ['button', 'textbox', 'searchbox', 'combobox', 'checkbox', 'radio', 'spinbutton', 'link', 'log', 'region'].includes(role?.value))
    t.ok(controls.length > 20)
    t.strictSame(controls.filter(({ name }) => !name?.value).map(({ role, properties }) => ({ role: role?.value, properties })), [])
  })

  await t.test('asks for the token if the gateway has one, and the devices of the tab use it', async t => {
    const { url } = await gateway(t, { TOKEN: 'open-sesame' })
    t.equal((await request({ url }, 'GET', '/events')).status, 401)
    t.equal((await request({ url }, 'GET', '/events', undefined, { authorization: 'Bearer wrong' })).status, 403)

    const page = await browser.open(t, url, { expected: /40[13]/ })
    const dialog = page.getByRole('dialog', { name: 'asks for a token' })
    await dialog.getByLabel('Token').fill('wrong')
    await page.keyboard.press('Enter')
    await dialog.getByText('That was not the token').waitFor()
    await dialog.getByLabel('Token').fill('open-sesame')
    await page.keyboard.press('Enter')
    await live(page)
    await openDevice(page, 'mine')
    await choose(page, 'mine')
    await page.getByRole('button', { name: 'Send', exact: true }).first().click()
    await card(page, 'mine').locator('.received').getByText('{"hello":"world"}').waitFor()
    t.notMatch(await page.locator('#curl').textContent(), 'open-sesame')

    await page.reload()
    await live(page)
    t.notOk(await dialog.isVisible(), 'this tab remembers it')
    await page.getByRole('button', { name: 'Forget the token' }).click()
    await dialog.waitFor()
  })

  await t.test('shows that the gateway has stopped, and reconnects to the next', async t => {
    await page.context().close() // the shared one would complain
    const alone = await browser.open(t, url, { expected: /ERR_|WebSocket/ })
    await live(alone)
    await openDevice(alone, 'faithful')
    t.equal(await stop(), 0)
    await alone.locator('#live[data-state=off]').waitFor()
    await entries(alone, 'faithful').filter({ hasText: '1012 retry=' }).waitFor()
    await gateway(t, { PORT: new URL(url).port })
    await live(alone)
  })
})

t.test('the files of the page', async t => {
  const { url, stop } = await gateway(t)

  await t.test('are served with their types, and no other file is', async t => {
    const types: Record<string, string> = {
      '/': 'text/html; charset=utf-8',
      '/page/style.css': 'text/css; charset=utf-8',
      '/page/page.js': 'text/javascript; charset=utf-8',
      '/page/icon.svg': 'image/svg+xml',
      '/sdk/client/index.js': 'text/javascript; charset=utf-8',
      '/sdk/protocol/peer.js': 'text/javascript; charset=utf-8'
    }
    for (const [path, type] of Object.entries(types)) {
      const { status, headers } = await request({ url }, 'GET', path)
      t.equal(status, 200, path)
      t.equal(headers.get('content-type'), type, path)
      t.equal(headers.get('x-content-type-options'), 'nosniff', path)
      t.match(headers.get('content-security-policy'), "default-src 'none'", path)
      t.equal((await request({ url }, 'GET', path, undefined, { 'if-none-match': headers.get('etag')! })).status, 304, path)
    }
    for (const path of ['/page/', '/page/..%2fgateway.ts', '/page/../../package.json', '/page/%2e%2e/%2e%2e/package.json', '/sdk/index.js', '/sdk/storage/disk/index.js', '/sdk/client/index.js.map']) {
      t.equal((await request({ url }, 'GET', path)).status, 404, path)
    }
  })

  await t.test('the feed is for this machine only, and ends with the application, after the close codes of its devices', async t => {
    t.match(await request({ url }, 'GET', '/events', undefined, { 'x-forwarded-for': '203.0.113.9' }), { status: 403, body: { code: 'PROTECTED_MODE' } })
    t.match(await request({ url }, 'GET', '/events', undefined, { origin: 'https://elsewhere.example' }), { status: 403, body: { code: 'ORIGIN_REFUSED' } })

    const feed = await fetch(`${url}/events`)
    t.equal(feed.headers.get('content-type'), 'text/event-stream')
    const device = await connect(url, 'last')
    device.notify('message', { data: 'x'.repeat(5_000) })
    device.send({ jsonrpc: '2.0', id: 1, method: 'ping' })
    await device.answer(1)
    const ended = stop()
    // a feed that was cut would reject here
    const events = [...(await feed.text()).matchAll(/^data: (.*)$/gm)].map(([, json]) => JSON.parse(json!))
    t.match(events, [
      { type: 'connected', deviceId: 'last' },
      { type: 'message', deviceId: 'last', data: { message: 'x'.repeat(5_000) } },
      { type: 'disconnected', deviceId: 'last', data: { code: 1012, reason: /^retry=\d+$/ } }
    ])
    t.equal(await ended, 0)
  })
})
