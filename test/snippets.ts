import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { root } from './root.ts'

/** What a snippet of the documentation needs to be a program. */
export interface Entry {
  /** Code before the snippet; names that begin with `$` are those of `header`. */
  before?: string
  /** Code after the snippet, which checks what it did. */
  after?: string
  /** What is replaced in the snippet: addresses and ports. */
  replace?: Array<[from: string | RegExp, to: string]>
  /** Lines that the program prints. */
  prints?: string[]
  /** Why the snippet is not run. */
  notRun?: string
  /** Why the types of the snippet are not checked. */
  notChecked?: string
}

/** The beginning of every program. */
export const header = `
import assert from 'node:assert/strict'
import { once as $once } from 'node:events'
import { connect as $connectSocket, type AddressInfo } from 'node:net'
import $Fastify, { type FastifyInstance } from 'fastify'
import $devices, { localBackplane as $localBackplane } from 'fastify-devices'
import { connect as $connect } from 'fastify-devices/client'
import { WebSocket as $WebSocket, WebSocketServer as $WebSocketServer } from 'ws'

async function $until (isTrue: () => boolean): Promise<void> {
  while (!isTrue()) await new Promise(resolve => { setTimeout(resolve, 5) })
}
async function $serve (app: FastifyInstance): Promise<string> {
  await app.listen({ port: 0, host: '127.0.0.1' })
  return \`http://127.0.0.1:\${(app.server.address() as AddressInfo).port}\`
}
`

const application = `
const app = $Fastify()
await app.register($devices)
const $url = await $serve(app)
`

/** An application, and a connected device that records its messages. */
const device = `
${application}
const $device = $connect($url + '/ws', { deviceId: 'abc123', WebSocket: $WebSocket })
const $seen: unknown[] = []
$device.on('message', ({ data }) => { $seen.push(data) })
$device.handle('reboot', ({ delay }) => ({ in: delay }))
await $until(() => app.devices.has('abc123') && $device.status.state === 'connected')
`

/** An application that listens to no port; a test that keeps it open would not end. */
const injected: Entry = { before: 'const app = $Fastify()\nawait app.register($devices)', after: 'await app.close()' }

const sees = (...messages: unknown[]) => `
await $until(() => $seen.length >= ${messages.length})
assert.deepEqual($seen, ${JSON.stringify(messages)})
`

const call: Entry = { before: device, after: `assert.deepEqual(result, { in: 5 })` }
const broadcast: Entry = { before: device, after: sees({ hello: 'all' }, { alarm: true }) }

/** A device that listens, and answers every call with its params. */
const listener = `
const $listener = new $WebSocketServer({ port: 0, host: '127.0.0.1' })
await $once($listener, 'listening')
const $called: string[] = []
$listener.on('connection', socket => socket.on('message', text => {
  const { id, method, params } = JSON.parse(String(text))
  $called.push(method)
  if (id !== undefined) socket.send(JSON.stringify({ jsonrpc: '2.0', id, result: params ?? {} }))
}))
const $address = \`ws://127.0.0.1:\${($listener.address() as AddressInfo).port}\`
`

/** What two snippets of a page import from the first. */
const importOfContract = `import { kiosk } from './kiosk.js'`
const contractOfGuide = /```ts\n(?<code>[\s\S]*?)```/.exec(readFileSync(join(root, 'docs/contract.md'), 'utf8'))!.groups!.code!

/** Uses the handler and the route of the recipes for schemas. */
const sellsAndAsks = `
const $url = await $serve(app as unknown as FastifyInstance)
const $device = $connect($url + '/ws', { deviceId: 'k1', WebSocket: $WebSocket })
$device.handle('price', () => 95)
assert.deepEqual(await $device.call('sale', { total: 12.4 }), { no: 12 })
await assert.rejects($device.call('sale', { total: -1 }), ({ device }: any) => device.code === -32602)
assert.deepEqual(await (await fetch($url + '/kiosks/k1/price')).json(), { cents: 95 })
`

const part = 'is a part of the options, not a program'

/** Each TypeScript and JavaScript snippet, by its page, its heading and its place under that heading. */
export const programs: Record<string, Entry> = {
  'README.md > In short 1': {
    before: 'const app = $Fastify()\nconst devices = $devices',
    after: 'await app.ready()\nassert.equal(app.devices.size, 0)'
  },
  'README.md > The first program 1': { notRun: 'test/docs.test.ts runs it, as example/first.ts' },
  'README.md > A tour 1': { before: device, after: sees({ hello: 'world' }, { open: 'door' }, { open: 'door' }) },
  'README.md > A tour 2': {
    before: 'const app = $Fastify()\nconst devices = $devices',
    after: `await app.ready()\nassert.equal((await app.devices.send('abc123', 1, { ttl: 1_000 })).status, 'queued')\nawait app.close()`
  },
  'README.md > A tour 3': call,
  'README.md > A tour 4': broadcast,
  'README.md > A tour 5': { before: device, after: `assert.deepEqual(await $device.call('meter', { watts: 12_000 }), { limit: 11_000 })` },
  'README.md > A tour 6': {
    before: application,
    after: `
      const $device = $connect($url + '/ws', { deviceId: 'abc123', WebSocket: $WebSocket })
      await $device.call('message', { data: 'hi' })
      await app.devices.disconnect('abc123')`,
    prints: ['abc123 127.0.0.1', 'abc123 hi', 'abc123 4511']
  },
  'README.md > A tour 7': {
    before: `${application}\nObject.assign(globalThis, { WebSocket: $WebSocket })`,
    replace: [[`'https://example.com/ws'`, `$url + '/ws'`]],
    after: `
      await $until(() => app.devices.has('abc123') && device.status.state === 'connected')
      assert.deepEqual(await app.devices.call('abc123', 'reboot', { delay: 5 }), { in: 5 })
      await app.devices.send('abc123', 'hi', { confirm: true })`,
    prints: ['hi']
  },

  'docs/architecture.md > The seams 1': {
    before: `
      import type {
        Answer, Detail, Ending, ExpiredLetter, Gateway as $Gateway, Health, Letter, Listener, ListPage, MailboxLimits, Message, NamedCall, Owner, Ownership, Presence, PresenceChange,
        Publication, PublishResult, PutResult, Receipt, Request, StoredLetter, TransportContext, Unwatch,
        Backplane as $Backplane, Codec as $Codec, Mailbox as $Mailbox, Transport as $Transport
      } from 'fastify-devices'
      type $Socket = Parameters<$Gateway['open']>[1]
      type Outgoing = Parameters<$Socket['send']>[0]
      /** Has the same members as lib, each of a type that fits. */
      type $Fits<Shown extends Real, Real> = Exclude<keyof Real, keyof Shown> | Exclude<keyof Shown, keyof Real>`,
    after: `const $members: Array<$Fits<Socket, $Socket> | $Fits<Transport, $Transport> | $Fits<Codec, $Codec> | $Fits<Mailbox, $Mailbox> | $Fits<Backplane, $Backplane>> = [] satisfies never[]
      const $none: never[] = $members`,
    notRun: 'declares interfaces'
  },
  'docs/architecture.md > The seams 2': { notRun: 'is a part of tests', notChecked: 'calls contracts that exist only in the tests, for seams that do not exist' },

  'docs/client.md > The client 1': {
    before: `
      ${application}
      app.devices.handle('temperature', params => params)
      Object.assign(globalThis, { WebSocket: $WebSocket })
      const myToken = () => 'secret'
      const show = async (data: unknown) => console.log(data)`,
    replace: [[`'https://example.com/ws'`, `$url + '/ws'`]],
    after: `
      assert.deepEqual(answer, { celsius: 21 })
      await app.devices.send('abc123', 'hi', { confirm: true })`,
    prints: ['connected undefined', 'hi']
  },
  'docs/client.md > The client 2': {
    before: `${application}\nconst connect = $connect`,
    replace: [[`'ws://localhost:3000/ws'`, `$url + '/ws'`]],
    after: `await $until(() => app.devices.has('abc123'))`
  },

  'docs/cli.md > Handlers and options: `--config` 1': {
    notRun: 'test/cli.test.ts runs a gateway with it', notChecked: 'is JavaScript, whose parameter has no type'
  },
  'docs/cluster.md > Nodes over Redis 1': { before: 'const app = $Fastify()', notRun: 'needs Redis; test/cli.test.ts runs nodes over it' },
  'docs/cluster.md > Nodes over NATS 1': {
    before: 'const app = $Fastify()',
    notRun: 'needs three NATS servers; test/nats-cluster.test.ts runs nodes over NATS'
  },

  'docs/contract.md > Contracts 1': { after: 'assert.ok(kiosk.methods.sale.params)' },
  'docs/contract.md > Contracts 2': {
    replace: [[importOfContract, contractOfGuide]],
    after: `
      const $url = await $serve(app)
      const $device = $connect($url + '/ws', { deviceId: 'k1', WebSocket: $WebSocket, contract: kiosk })
      const $seen: unknown[] = []
      $device.handle('reboot', () => ({ at: 'noon' })).on('message', ({ data }) => { $seen.push(data) })
      $device.subscribe('prices/+', () => {})
      await $until(() => $seen.length === 2)
      assert.deepEqual($seen, [{ show: 'restarting at noon' }, { cents: 95 }])
      assert.deepEqual(await $device.call('sale', { total: 12.4 }), { no: 12 })`
  },
  'docs/contract.md > Contracts 3': {
    replace: [[importOfContract, contractOfGuide], [`'ws://127.0.0.1:3000/ws'`, `$url + '/ws'`], ['const device', `
      const app = $Fastify()
      await app.register($devices, { contract: kiosk })
      app.devices.as(kiosk).handle('sale', ({ total }) => ({ no: Math.ceil(total) }))
      const $url = await $serve(app)
      Object.assign(globalThis, { WebSocket: $WebSocket })
      const device`]],
    after: `
      assert.equal(no, 13)
      assert.ok((await app.devices.as(kiosk).call('k1', 'reboot', { delay: 5 })).at)
      await app.devices.broadcast({ cents: 95 }, { topic: 'prices/milk' })
      await device.call('ping')`,
    prints: ['95']
  },

  'docs/devices.md > Send 1': { before: device, after: sees({ hello: 'world' }, { open: 'door' }, { open: 'door' }, { level: 3 }, { pay: 5 }) },
  'docs/devices.md > Send 2': { before: device, prints: ['sent', 'queued'] },
  'docs/devices.md > Call 1': call,
  'docs/devices.md > Broadcast 1': broadcast,
  'docs/devices.md > Handle 1': {
    before: `${device}\nglobalThis.fetch = async () => new Response()`,
    after: `
      assert.deepEqual(await $device.call('meter', { watts: 5 }), { limit: 11_000 })
      await assert.rejects($device.call('meter', { watts: 12_000 }), ({ device }: any) => device.code === 42 && device.data.max === 11_000)`
  },
  'docs/devices.md > Request ids 1': {
    before: `
      const app = $Fastify()
      await app.register($devices)`,
    after: `
      const $url = await $serve(app)
      const $device = $connect($url + '/ws', { deviceId: 'abc123', WebSocket: $WebSocket })
      $device.handle('open', () => ({ opened: true }))
      await $until(() => app.devices.has('abc123') && $device.status.state === 'connected')
      assert.deepEqual((await app.inject({ method: 'POST', url: '/doors/abc123/open' })).json(), { opened: true })
      const $siren = new $WebSocket($url.replace('http', 'ws') + '/ws?deviceId=siren&trace=1')
      const $frames: string[] = []
      $siren.on('message', text => $frames.push(String(text)))
      await $until(() => $frames.length === 1)
      await $device.call('alarm')
      await $until(() => $frames.length === 2)
      assert.match($frames[1]!, /"tracestate":"fastify-devices=/)`
  },
  'docs/devices.md > Events 1': {
    before: application,
    after: `
      const $device = $connect($url + '/ws', { deviceId: 'abc123', WebSocket: $WebSocket })
      await $device.call('message', { data: 'hi' })
      await app.devices.disconnect('abc123')`,
    prints: ['abc123 127.0.0.1', 'abc123 hi', 'abc123 4511']
  },
  'docs/devices.md > Inspect 1': { before: `${device}\nawait app.devices.join('abc123', 'news/#')` },
  'docs/devices.md > Inspect 2': { before: device },
  'docs/devices.md > Routes of your own 1': { ...injected, after: `assert.deepEqual((await app.inject('/kiosks')).json(), [])\nawait app.close()` },

  'docs/devices.md > Readiness 1': { ...injected, after: 'assert.equal(ok, true)\nawait app.close()' },
  'docs/devices.md > @fastify/under-pressure 1': {
    before: `
      import { memoryMailbox } from 'fastify-devices'
      let $isFull = false
      const app = $Fastify()
      await app.register($devices, { mailbox: { ...memoryMailbox(), health: async () => $isFull ? { ok: false, reason: 'disk full' } : { ok: true } } })`,
    after: `
      const $statusOf = async (url: string) => (await app.inject(url)).statusCode
      assert.deepEqual([await $statusOf('/status'), await $statusOf('/devices')], [200, 200])
      $isFull = true
      assert.deepEqual([await $statusOf('/status'), await $statusOf('/devices')], [503, 200])
      $isFull = false
      assert.equal(await $statusOf('/status'), 200)
      await app.close()`
  },

  'docs/console.md > The console 1': {
    before: 'const app = $Fastify()\nawait app.register($devices)',
    after: `assert.equal((await app.inject('/console/')).statusCode, 200)\nawait app.close()`
  },
  'docs/console.md > Who may use it 1': {
    before: `const app = $Fastify()\nconst devices = $devices\nprocess.env.SESSION = '7'`,
    after: `
      assert.equal((await app.inject('/admin/')).statusCode, 401)
      assert.equal((await app.inject({ url: '/admin/samples', headers: { cookie: 'session=7' } })).statusCode, 200)
      await app.close()`
  },
  'docs/events.md > Events as a stream 1': {
    before: `${application}\nconst $visits = setInterval(() => { new $WebSocket($url.replace('http', 'ws') + '/ws?deviceId=abc123').on('open', function () { this.send(JSON.stringify({ jsonrpc: '2.0', method: 'message', params: { data: 'a\\u2028b' } })); this.close(4000) }) }, 50)`,
    replace: [["'http://localhost:3000/events'", "$url + '/events?types=connected,message'"], ['console.log(type, deviceId, data)', "if (type === 'message') { console.log(deviceId, data.message.length); break }"]],
    after: 'clearInterval($visits)',
    prints: ['abc123 3']
  },
  'docs/dial.md > Connections from the server 1': {
    before: `${application}${listener}`,
    replace: [[`'ws://10.0.0.7:8080/control'`, '$address']],
    after: `await $until(() => $called.includes('open'))\ndialled.close()`
  },
  'docs/dial.md > When the connection ends 1': {
    before: `
      ${application}${listener}
      const dialled = app.devices.dial($address, { deviceId: 'hall-3' })
      await $until(() => app.devices.has('hall-3'))`,
    after: `await $until(() => dialled.status.state === 'stopped')`,
    prints: [`{ state: 'connected' }`]
  },
  'docs/dial.md > Two gateways 1': {
    before: `
      const a = $Fastify()
      const b = $Fastify()
      await a.register($devices)
      await b.register($devices, { authenticate: ({ token }) => token === 'secret' })
      await a.ready()
      const $url = await $serve(b)
      const tokenForB = () => 'secret'
      b.devices.handle('sum', (params, { device }) => [device.id, params])
      a.devices.handle('sum', (params, { device }) => [device.id, params])`,
    replace: [[`'ws://b.example/ws'`, `$url.replace('http', 'ws') + '/ws'`]],
    after: `
      await $until(() => a.devices.has('gateway-b') && b.devices.has('gateway-a'))
      assert.deepEqual(await a.devices.call('gateway-b', 'sum', [1]), ['gateway-a', [1]])
      assert.deepEqual(await b.devices.call('gateway-a', 'sum', [2]), ['gateway-b', [2]])`
  },

  'docs/deploy.md > Containers 1': { notRun: 'needs three NATS servers; test/campaigns/partition-node.ts has the option' },
  'docs/metrics.md > Metrics 1': {
    replace: [['port: 3000', 'port: 0']],
    after: `
      const $text = await (await fetch('http://127.0.0.1:' + (app.server.address() as AddressInfo).port + '/metrics')).text()
      assert.match($text, /^devices_backplane_up 1$/m)
      await app.close()`
  },
  'docs/metrics.md > A registry of your own 1': {
    before: `
      import metrics from 'fastify-devices/metrics'
      const app = $Fastify()
      await app.register($devices)`,
    after: `
      const { body: $text } = await app.inject('/metrics')
      for (const family of [/^devices_backplane_up 1$/m, /^process_cpu_seconds_total /m]) assert.match($text, family)
      await app.close()
      assert.doesNotMatch(await registry.metrics(), /devices_/)`
  },

  'docs/ocpp.md > Chargers: OCPP-J 1': {
    before: 'const app = $Fastify()\nconst isKeyOf = (deviceId: string, password = "") => password === deviceId',
    after: `
      const $url = await $serve(app)
      const $charger = new $WebSocket($url.replace('http', 'ws') + '/ocpp/CP001', 'ocpp1.6', { headers: { authorization: 'Basic ' + btoa('CP001:CP001') } })
      await $once($charger, 'open')
      $charger.send('[2,"1","BootNotification",{}]')
      assert.equal(JSON.parse(String((await $once($charger, 'message'))[0]))[2].interval, 300)`
  },
  'docs/ocpp.md > Chargers: OCPP-J 2': {
    before: `
      const isKeyOf = (deviceId: string, password = '') => password === deviceId
      const isTokenOf = isKeyOf
      const $options: import('fastify-devices').Options = {`,
    after: '}',
    notRun: part
  },

  'docs/recipes.md > @fastify/jwt 1': {
    before: `Object.assign(process.env, { SECRET: 'secret' })`,
    after: `
      const $url = await $serve(app)
      const $sign = (claims: object) => app.jwt.sign(claims, { expiresIn: '1h' })
      const $status = async (method: 'GET' | 'POST', path: string, token: string) =>
        (await app.inject({ method, url: path, headers: { authorization: 'Bearer ' + token }, ...(method === 'POST' && { payload: {} }) })).statusCode
      const $device = $connect($url + '/ws', { deviceId: 'd', token: $sign({ sub: 'd', aud: 'devices' }), WebSocket: $WebSocket })
      await $until(() => $device.status.state === 'connected')
      const $credentials = app.devices.get('d')!.credentials
      assert.equal($credentials.expiresAt, ($credentials.exp as number) * 1_000)
      for (const claims of [{ sub: 'e', aud: 'devices' }, { sub: 'd', aud: 'rest' }]) {
        const $other = $connect($url + '/ws', { deviceId: 'd', token: $sign(claims), WebSocket: $WebSocket })
        await $until(() => $other.status.state !== 'connecting')
        assert.notEqual($other.status.state, 'connected')
        $other.close()
      }
      const $caller = $sign({ sub: 'ann', aud: 'rest', scope: 'list describe' })
      assert.equal(await $status('GET', '/devices', $caller), 200)
      assert.equal(await $status('POST', '/broadcast', $caller), 403)
      assert.equal(await $status('GET', '/devices', $sign({ sub: 'd', aud: 'devices', scope: 'list' })), 401)
      assert.equal(await $status('GET', '/devices', app.jwt.sign({ sub: 'ann', aud: 'rest', scope: 'list' })), 401)
      assert.equal((await app.inject('/devices')).json().code, 'FST_JWT_NO_AUTHORIZATION_IN_HEADER')`
  },
  'docs/recipes.md > @fastify/jwt 2': {
    before: `
      const [app, devices] = [$Fastify(), $devices]
      const credentialsOf = (deviceId: string, token = '') => token === 'token-of-' + deviceId ? { expiresAt: Date.now() + 60_000 } : undefined`,
    after: `
      const $url = (await $serve(app)).replace('http', 'ws')
      for (const path of ['/ws?deviceId=d&token=token-of-d', '/ws/d?token=token-of-d']) await $once(new $WebSocket($url + path), 'open')
      await $once(new $WebSocket($url + '/ws?deviceId=e&token=token-of-d'), 'error')`
  },
  'docs/recipes.md > Tenants 1': {
    after: `
      const $url = await $serve(app)
      const $devices2 = ['acme:door-1', 'globex:door-1'].map(deviceId => $connect($url + '/ws', { deviceId, token: 'key-of-' + deviceId.split(':')[0], WebSocket: $WebSocket }))
      await $until(() => $devices2.every(({ status }) => status.state === 'connected'))
      await $once(new $WebSocket($url.replace('http', 'ws') + '/ws?deviceId=globex:door-1', { headers: { authorization: 'Bearer key-of-acme' } }), 'error')
      await $devices2[0]!.call('subscribe', { topics: ['acme/alarms'] })
      await assert.rejects($devices2[0]!.call('subscribe', { topics: ['globex/alarms'] }))
      const $ask = async (method: 'GET' | 'POST', path: string, payload?: string, type = 'application/json') => await app.inject({
        method, url: path, headers: { authorization: 'Bearer key-of-acme', ...(payload && { 'content-type': type }) }, ...(payload && { payload })
      })
      assert.deepEqual((await $ask('GET', '/devices?prefix=acme:')).json().devices.map(({ deviceId }: any) => deviceId), ['acme:door-1'])
      assert.equal((await $ask('GET', '/devices')).statusCode, 403)
      assert.equal((await $ask('POST', '/broadcast?topic=acme/alarms', '1')).json().sent, 1)
      assert.equal((await $ask('POST', '/broadcast', '1')).statusCode, 403)
      for (const id of ['globex:door-1', 'globex:none']) assert.equal((await $ask('GET', '/devices/' + id)).statusCode, 403)
      const $lines = (await $ask('POST', '/messages', '{"to":"globex:door-1","data":1}\\n{"to":"acme:door-1","data":1}', 'application/x-ndjson')).body
      assert.deepEqual($lines.trim().split('\\n').map(line => JSON.parse(line).code), ['FORBIDDEN', undefined])
      assert.equal((await app.inject('/devices?prefix=acme:')).statusCode, 401)`
  },
  'docs/recipes.md > @fastify/rate-limit 1': {
    replace: [['max: 100', 'max: 2']],
    after: `
      const $url = await $serve(app)
      const $statuses = async (key: string) => {
        const answers: number[] = []
        for (let asked = 0; asked < 3; asked++) answers.push((await app.inject({ url: '/devices', headers: { authorization: 'Bearer ' + key } })).statusCode)
        return answers
      }
      assert.deepEqual(await $statuses('key-1'), [200, 200, 429])
      assert.deepEqual(await $statuses('key-2'), [200, 200, 429])
      assert.deepEqual(await $statuses('key-3'), [403, 403, 403])
      const $limited = await app.inject({ url: '/devices', headers: { authorization: 'Bearer key-1' } })
      assert.ok(Number($limited.headers['retry-after']) > 0)
      for (const id of ['a', 'b', 'c', 'd']) await $once(new $WebSocket($url.replace('http', 'ws') + '/ws/' + id), 'open')`
  },
  'docs/recipes.md > Zod 1': {
    after: `
      ${sellsAndAsks}
      await app.ready()
      assert.ok(['/kiosks/{id}/price', '/devices/{id}/messages'].every(path => Object.hasOwn(app.swagger().paths!, path)))`
  },
  'docs/recipes.md > TypeBox 1 1': { after: sellsAndAsks },
  'docs/recipes.md > CommonJS 1': { notRun: 'test/recipes.test.ts runs it', notChecked: 'is CommonJS' },
  'docs/recipes.md > @fastify/autoload 1': { notRun: 'test/recipes.test.ts runs it' },
  'docs/recipes.md > @fastify/autoload 2': { notRun: 'test/recipes.test.ts runs it' },
  'docs/recipes.md > @fastify/autoload 3': { notRun: 'test/recipes.test.ts runs it', notChecked: 'is CommonJS' },

  'docs/redis.md > Redis 1': { before: 'const app = $Fastify()', notRun: 'needs Redis; test/cli.test.ts runs nodes over it' },
  'docs/redis.md > With @fastify/redis 1': {
    before: `import { redis } from 'fastify-devices/redis'\nconst app = $Fastify()\nconst devices = $devices`,
    notRun: 'needs Redis; test/redis-access.test.ts uses the client of the real package'
  },
  'docs/redis.md > TLS 1': {
    before: `import { redis } from 'fastify-devices/redis'\nconst app = $Fastify()\nconst devices = $devices\nconst ca = ''`,
    notRun: 'needs Redis with TLS; test/redis-access.test.ts connects over TLS'
  },
  'docs/redis.md > A worker 1': { before: `import { redis } from 'fastify-devices/redis'`, notRun: 'needs Redis; test/redis-access.test.ts runs a worker over it' },
  'docs/redis.md > Failover 1': {
    before: `import { redis } from 'fastify-devices/redis'\nconst app = $Fastify()\nconst devices = $devices\nconst [password, sentinelPassword] = ['', '']`,
    notRun: 'needs three Sentinels; test/redis-access.test.ts finds the master through one'
  },

  'docs/security.md > Who is this device: `authenticate` 1': {
    before: `Object.assign(process.env, { SECRET: 'secret', ADMIN_TOKEN: 'admin', PORT: '0' })`,
    replace: [['logger: true, ', ''], [/^export const /gm, 'const ']],
    after: `
      const $device = $connect(\`http://127.0.0.1:\${(app.server.address() as AddressInfo).port}/ws\`, {
        deviceId: 'abc123', token: tokenFor('abc123', Date.now() + 60_000), WebSocket: $WebSocket
      })
      await $until(() => $device.status.state === 'connected')
      await $device.call('renew', { token: tokenFor('abc123', Date.now() + 120_000) })
      await assert.rejects($device.call('renew', { token: tokenFor('def456', Date.now() + 120_000) }))
      assert.equal((await app.inject({ url: '/devices', headers: { authorization: 'Bearer admin' } })).statusCode, 200)
      assert.equal((await app.inject({ url: '/devices', headers: { authorization: 'Bearer other' } })).statusCode, 403)`
  },
  'docs/security.md > Browsers 1': { before: `const token = 'secret'\nconst WebSocket = $WebSocket`, notRun: 'connects to example.com; test/admission.test.ts sends tokens as subprotocols' },
  'docs/security.md > What a plugin cannot set on its host 1': {
    before: 'const Fastify = $Fastify',
    after: 'await app.ready()\nassert.equal(app.server.headersTimeout, 10_000)'
  },

  'docs/tcp.md > TCP and Unix sockets 1': {
    replace: [['tcp({ port: 4000 })', '$tcp'], ['port: 3000', 'port: 0'], ['const app', 'const $tcp = tcp({ port: 0 })\nconst app']],
    after: `
      const $socket = $connectSocket(($tcp as any).address.port, '127.0.0.1')
      $socket.write('{"jsonrpc":"2.0","method":"connect","params":{"deviceId":"abc123"}}\\n')
      assert.equal(JSON.parse(String((await $once($socket, 'data'))[0])).method, 'welcome')`
  },
  'docs/tcp.md > TLS and certificates 1': {
    before: `import { tcp } from 'fastify-devices/tcp'\nconst [key, cert, ca] = ['', '', '']`,
    notRun: 'needs certificates; test/tcp.test.ts connects with them'
  },
  'docs/tcp.md > TLS and certificates 2': { before: `const $options: import('fastify-devices').Options = {`, after: '}', notRun: part },
  'docs/tcp.md > A device in Node 1': {
    before: `
      import { tcp } from 'fastify-devices/tcp'
      const $transports = [tcp({ port: 0 }), tcp({ path: './devices.sock' })]
      const app = $Fastify()
      await app.register($devices, { transports: $transports })
      await app.ready()
      const [ca, cert, key] = [undefined, undefined, undefined] as any`,
    replace: [[`'tcp://127.0.0.1:4000', { deviceId: 'abc123'`, `\`tcp://127.0.0.1:\${($transports[0] as any).address.port}\`, { deviceId: 'abc123'`], [`'unix:/run/devices.sock', { deviceId: 'abc123'`, `\`unix:\${process.cwd()}/devices.sock\`, { deviceId: 'def456'`], [`'tcp://gateway.example:4000'`, `'tcp://127.0.0.1:9'`]],
    after: `await $until(() => app.devices.has('abc123') && app.devices.has('def456'))`
  },

  'docs/testing.md > A first test 1': { replace: [['export async', 'async']], notRun: 'test/testing-guide.test.ts runs it' },
  'docs/testing.md > A first test 2': {
    replace: [[/^import assert.*$/m, ''], [/^import \{ build \}.*$/m, 'declare function build (): Promise<FastifyInstance>']],
    notRun: 'test/testing-guide.test.ts runs it'
  },
  'docs/testing.md > Letters 1': injected,
  'docs/testing.md > Letters 2': injected,
  'docs/testing.md > Calls 1': injected,
  'docs/testing.md > Refusals 1': injected,
  'docs/testing.md > Several devices 1': injected,
  'docs/testing.md > With a real port 1': { replace: [[/^import type \{ AddressInfo \}.*$/m, '']] },

  'docs/tracing.md > Tracing 1': {
    // a console exporter would print the spans of later programs too
    replace: [['ConsoleSpanExporter, ', 'InMemorySpanExporter, '], ['new ConsoleSpanExporter()', '$exporter'], ['port: 3000', 'port: 0'], [/^const tracerProvider/m, 'const $exporter = new InMemorySpanExporter()\nconst tracerProvider']],
    after: `
      await app.devices.broadcast('hello')
      stop()
      context.disable()
      assert.deepEqual($exporter.getFinishedSpans().map(({ name }) => name), ['broadcast'])
      await app.close()`
  },
  'docs/tracing.md > On the device 1': {
    before: `
      ${application}
      app.devices.handle('settings', () => ({ volume: 7 }))
      Object.assign(globalThis, { WebSocket: $WebSocket })`,
    replace: [[`'https://example.com/ws'`, `$url + '/ws'`]],
    after: `
      await $until(() => device.status.state === 'connected')
      assert.deepEqual(await app.devices.call('abc123', 'reboot'), { volume: 7 })`
  },
  'docs/tracing.md > The channel 1': {
    before: application,
    after: `
      console.log = (...words: unknown[]) => { $lines.push(words.slice(0, 2).join(' ')) }
      const $lines: string[] = []
      await app.devices.broadcast('hello')
      channel('fastify-devices:operation').unsubscribe(onOperation)
      assert.deepEqual($lines, ['broadcast done'])`
  },
  'docs/webhooks.md > A gateway and a receiver 1': {
    replace: [
      ['{ port: 4000 }', `{ port: 0, host: '127.0.0.1' }`], ['{ port: 3000 }', `{ port: 0, host: '127.0.0.1' }`],
      [`'http://127.0.0.1:4000/hook'`, '`http://127.0.0.1:${(receiver.server.address() as AddressInfo).port}/hook`']
    ],
    after: `
      const $device = $connect(\`http://127.0.0.1:\${(app.server.address() as AddressInfo).port}/ws\`, { deviceId: 'abc123', WebSocket: $WebSocket })
      const $sends = async (count: number) => {
        while ((await app.devices.webhooks())[0]!.sent < count) await new Promise(resolve => { setTimeout(resolve, 5) })
      }
      await $sends(1)
      $device.close()
      await $sends(2)
      await app.close()
      await receiver.close()`,
    prints: ['fastify-devices.connected abc123', 'fastify-devices.disconnected abc123']
  },
  'docs/webhooks.md > Verify 1': {
    replace: [['export function', 'function']],
    after: `
      const { Webhook } = await import('standardwebhooks')
      const secret = 'whsec_' + Buffer.alloc(32, 1).toString('base64')
      const $now = new Date()
      const $headers = (signature: string) => ({ 'webhook-id': 'a', 'webhook-timestamp': String(Math.floor($now.getTime() / 1_000)), 'webhook-signature': signature })
      const $signature = new Webhook(secret).sign('a', $now, '{}')
      assert.equal(isGenuine($headers('v1,AAAA ' + $signature), '{}', secret), true)
      assert.equal(isGenuine($headers($signature), '{ }', secret), false)
      assert.equal(isGenuine({ ...$headers($signature), 'webhook-timestamp': '1' }, '{}', secret), false)
      assert.equal(isGenuine({}, '{}', secret), false)`
  },
  'docs/webhooks.md > See what happens 1': injected,

  'docs/workers.md > Workers 1': {
    before: `
      const $backplane = $localBackplane()
      const app = $Fastify()
      await app.register($devices, { backplane: $backplane })
      const $url = await $serve(app)
      const limitOf = async (_deviceId: string, _options: object) => 11_000`,
    // within one process instead of over Redis
    replace: [[/^import .*\/redis'\n/m, ''], [/^(const (?:backplane|\{ backplane \}) =) await .*$/m, 'const backplane = $backplane']],
    after: `
      const $device = $connect($url + '/ws', { deviceId: 'abc123', WebSocket: $WebSocket })
      await $until(() => $device.status.state === 'connected')
      while (!await $device.call('meter', { watts: 5 }).catch(() => false));
      assert.deepEqual(await $device.call('meter', { watts: 5 }), { limit: 11_000 })
      await $device.call('message', { data: 'hi' })`,
    prints: ['abc123 hi']
  }
}

/** Each shell snippet that no test of test/snippets.test.ts runs, and why. */
export const shellsNotRun: Record<string, string> = {
  'README.md > Install 1': 'needs a registry that has the package',
  'README.md > Install 2': 'installs the dependencies',
  'README.md > Install 3': 'installs the dependencies',
  'README.md > The first program 1': 'needs a terminal; test/docs.test.ts connects the same device',
  'CONTRIBUTING.md > Set up 1': 'installs the dependencies',
  'docs/cli.md > A session 1': 'runs until it is stopped; test/cli.test.ts runs the session',
  'docs/cli.md > Handlers and options: `--config` 1': 'runs until it is stopped; test/cli.test.ts runs gateways with a config',
  'docs/cluster.md > Nodes over Redis 1': 'needs Docker',
  'docs/cluster.md > Nodes over Redis 2': 'runs until it is stopped; test/cli.test.ts runs the same gateways',
  'docs/cluster.md > Nodes over Redis 3': 'needs Redis; test/cli.test.ts sends the same requests',
  'docs/cluster.md > Nodes over Redis 4': 'needs a registry that has the package',
  'docs/cluster.md > Nodes over NATS 1': 'needs a registry that has the package',
  'docs/cluster.md > Three nodes on one machine 1': 'needs NATS; test/nats-cluster.test.ts starts nodes over it',
  'docs/cluster.md > Three nodes on one machine 2': 'needs NATS; test/outcomes.ts has the same requests',
  'docs/contract.md > Documents 1': 'needs a server with a document; test/openapi.test.ts generates a client',
  'docs/deploy.md > systemd and nginx 1': 'installs services; test/deploy-files.test.ts checks the unit, test/deploy.test.ts runs nginx',
  'docs/deploy.md > systemd and nginx 2': 'writes to /etc',
  'docs/deploy.md > systemd and nginx 3': 'starts services',
  'docs/deploy.md > Containers 1': 'needs Docker',
  'docs/deploy.md > Containers 2': 'needs Docker; test/deploy.test.ts runs rollout.sh',
  'docs/deploy.md > Kubernetes 1': 'needs Kubernetes',
  'docs/events.md > Events as a stream 1': 'does not end; test/events.test.ts reads the same',
  'docs/ocpp.md > Call a charger 1': 'needs a charger; test/ocpp.test.ts sends the same request',
  'docs/ocpp.md > Send to a charger 1': 'needs a charger; test/ocpp.test.ts sends the same request',
  'docs/performance.md > Performance 1': 'takes minutes',
  'docs/redis.md > Redis 1': 'needs a registry that has the package',
  'docs/tracing.md > Tracing 1': 'installs the dependencies',
  'docs/tcp.md > Try it with nc 1': 'test/tcp.test.ts runs it',
  'docs/tcp.md > Try it with nc 2': 'test/tcp.test.ts runs it',
  'docs/tcp.md > Try it with nc 3': 'test/tcp.test.ts runs it'
}
