import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer, request as httpRequest } from 'node:http'
import { connect as connectSocket, type AddressInfo } from 'node:net'
import { join } from 'node:path'
import Fastify, { type FastifyServerOptions } from 'fastify'
import t, { type Test } from 'tap'
import devicesConsole from '../lib/console/index.ts'
import { SAMPLE_INTERVAL_MS } from '../lib/console/sampler.ts'
import devices, { type Options } from '../lib/index.ts'
import { withBrowser } from './browser.ts'
import { card, choose, entries, live, openDevice, openPage, plot, sends, serve } from './console-page.ts'
import { root } from './root.ts'
import { connect, request } from './support.ts'

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
    await plot(page, 'Messages').locator('dd', { hasText: '6/s' }).waitFor()
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

t.test('npm start serves the console', async t => {
  const { NODE_OPTIONS: _, TOKEN: __, ...env } = process.env
  const child = spawn(process.execPath, [join(root, 'dist/lib/cli/index.js'), 'serve', '--config', join(root, 'dist/example/gateway.js')], {
    env: { ...env, PORT: '0', DATA: t.testdir() }, stdio: ['ignore', 'pipe', 'inherit']
  })
  const exited = once(child, 'exit')
  t.teardown(async () => {
    child.kill()
    await exited
  })
  let printed = ''
  while (!printed.includes('"url":"')) {
    const [chunk] = await Promise.race([once(child.stdout, 'data'), exited.then(() => { throw new Error(`The gateway ended: ${printed}`) })])
    printed += String(chunk)
  }
  const [, url] = /"url":"(http:[^"]+)"/.exec(printed)!
  const { status, body } = await request({ url: url! }, 'GET', '/console/')
  t.equal(status, 200)
  t.match(String(body), 'Device console')
})
