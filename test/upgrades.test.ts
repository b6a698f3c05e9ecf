import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { connect as connectTcp, type AddressInfo, type Socket } from 'node:net'
import { connect as connectTls } from 'node:tls'
import { text } from 'node:stream/consumers'
import fastifyWebsocket from '@fastify/websocket'
import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import t, { type Test } from 'tap'
import devices, { type Options } from '../lib/index.ts'
import { gate } from './fakes.ts'
import { connect, open, until } from './support.ts'

const certificates = new URL('certificates/', import.meta.url)
const secret = { key: readFileSync(new URL('server.key', certificates)), cert: readFileSync(new URL('server.pem', certificates)) }

/** What curl and Java send before they know whether the server speaks HTTP/2. */
const H2C = ['Connection: Upgrade, HTTP2-Settings', 'Upgrade: h2c', 'HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA']

function requestOf (method: string, path: string, { body = '', asks = H2C }: { body?: string, asks?: string[] } = {}): string {
  const type = body === '' ? [] : ['Content-Type: application/json', `Content-Length: ${body.length}`]
  return [`${method} ${path} HTTP/1.1`, 'Host: localhost', ...asks, ...type, '', body].join('\r\n')
}

const last = (path: string) => requestOf('GET', path, { asks: ['Connection: close'] })

/** What the server says on one connection until it ends it. */
async function converse (socket: Socket, ...sent: string[]): Promise<string> {
  for (const part of sent) socket.write(part)
  return await text(socket)
}

const statuses = (said: string) => [...said.matchAll(/HTTP\/1\.1 (\d+)/g)].map(([, status]) => Number(status))

async function serving (t: Test, { options, server, before }: {
  options?: Options, server?: FastifyServerOptions, before?: (app: FastifyInstance) => Promise<void>
} = {}): Promise<FastifyInstance & { url: string, dial: () => Socket, sockets: Set<Socket> }> {
  const app = Fastify(server) as FastifyInstance
  await before?.(app)
  await app.register(devices, options ?? {})
  app.get('/host', async () => ({ from: 'host' }))
  app.post('/host', async ({ body }) => ({ from: 'host', body }))
  const sockets = new Set<Socket>()
  app.server.on('connection', socket => sockets.add(socket))
  const opened = await open(t, app)
  return Object.assign(opened, { sockets, dial: () => connectTcp(Number(new URL(opened.url).port), '127.0.0.1') })
}

const hosts: Array<[title: string, given: Parameters<typeof serving>[1]]> = [
  ['an application', {}],
  ['an application that registered @fastify/websocket itself', { before: async app => { await app.register(fastifyWebsocket) } }],
  ['an application with the plugin in two scopes', { before: async app => { await app.register(async scope => { await scope.register(devices, { prefix: '/two' }) }) } }]
]

for (const [title, given] of hosts) {
  t.test(`${title} answers a request that asks for HTTP/2 as the plain request it also is`, async t => {
    const app = await serving(t, given)
    const device = await connect(app.url, 'd')
    const said = await converse(app.dial(),
      requestOf('GET', '/host'),
      requestOf('POST', '/host', { body: '{"a":1}' }),
      requestOf('GET', '/devices'),
      requestOf('POST', '/broadcast', { body: '{"b":2}' }),
      requestOf('GET', '/ws?deviceId=e'),
      requestOf('GET', '/nowhere'),
      requestOf('GET', '/host', { asks: ['Connection: Upgrade', 'Upgrade: anything'] }),
      last('/host'))
    t.strictSame(statuses(said), [200, 200, 200, 200, 426, 404, 200, 200])
    t.match(said, '{"from":"host","body":{"a":1}}')
    t.match(await device.message(), { params: { data: { b: 2 } } })
    t.equal(app.devices.size, 1)
    await device.close()
    await connect(app.url, 'd')
  })
}

t.test('a body that comes later, or in chunks, reaches the request', async t => {
  const app = await serving(t)
  const socket = app.dial()
  const [early, late] = [requestOf('POST', '/host', { body: '{"later":true}' }).slice(0, -8), '":true}'.padStart(8, 'r')]
  socket.write(early)
  await until(() => app.sockets.size > 0 && [...app.sockets].every(({ bytesRead }) => bytesRead === early.length))
  const chunked = requestOf('POST', '/host', { asks: [...H2C, 'Transfer-Encoding: chunked', 'Content-Type: application/json'] })
  const said = await converse(socket, late, chunked, '7\r\n{"n":[1\r\n2\r\n]}\r\n0\r\n\r\n', last('/host'))
  t.strictSame(statuses(said), [200, 200, 200])
  t.match(said, '"body":{"later":true}')
  t.match(said, '"body":{"n":[1]}')
})

t.test('a request that asks for HTTP/2 while an earlier one is answered waits for its turn', async t => {
  const app = await serving(t, {
    before: async app => {
      app.get('/slow', async () => {
        await new Promise(resolve => setImmediate(resolve))
        return { slow: true }
      })
    }
  })
  const plain = requestOf('GET', '/slow', { asks: [] })
  const said = await converse(app.dial(), plain + plain + requestOf('GET', '/slow') + requestOf('GET', '/host') + last('/host'))
  t.strictSame(said.match(/\{.*?\}/g), ['{"slow":true}', '{"slow":true}', '{"slow":true}', '{"from":"host"}', '{"from":"host"}'])
})

t.test('a reset while it waits for its turn harms nobody', async t => {
  const reset = gate()
  const app = await serving(t, {
    before: async app => {
      app.get('/slow', async ({ raw }, reply) => {
        reply.hijack()
        await reset.opened
        // what is written to it now tells the server that it is gone
        await until(() => {
          reply.raw.write('part of the answer')
          return raw.socket.destroyed
        })
      })
    }
  })
  const socket = app.dial()
  socket.on('error', () => {})
  socket.write(requestOf('GET', '/slow', { asks: [] }) + requestOf('GET', '/host'))
  await until(() => [...app.sockets].some(one => one.listenerCount('error') > 0 && one.listenerCount('data') === 0))
  const [served] = app.sockets
  socket.resetAndDestroy()
  reset.open()
  await until(() => served!.closed)
  t.equal(statuses(await converse(app.dial(), last('/host')))[0], 200)
})

t.test('many of them on one connection leave no listener behind', async t => {
  const app = await serving(t)
  const socket = app.dial()
  const turns = async (count: number) => {
    for (let turn = 0; turn < count; turn++) {
      socket.write(requestOf('GET', '/host'))
      await once(socket, 'data')
    }
    const [served] = app.sockets
    return served!.eventNames().map(name => `${String(name)} ${served!.listenerCount(name)}`).toSorted()
  }
  const first = await turns(2)
  t.strictSame(await turns(30), first)
  socket.destroy()
})

t.test('a request whose headers Node has not kept all is refused, since its body could pass for another request', async t => {
  const app = await serving(t)
  const many = Array.from({ length: 1_100 }, (_, at) => `h${at}: 1`)
  const said = await converse(app.dial(), requestOf('POST', '/host', { body: last('/host'), asks: [...H2C, ...many] }))
  t.strictSame(statuses(said), [431])
})

t.test('an upgrade that another listener of the host waits for is left to it', async t => {
  const app = await serving(t, {
    before: async app => {
      app.server.on('upgrade', ({ headers }, socket) => {
        if (headers.upgrade === 'echo') socket.end('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello')
      })
    }
  })
  t.match(await converse(app.dial(), requestOf('GET', '/host', { asks: ['Connection: Upgrade', 'Upgrade: echo'] })), /^HTTP\/1\.1 101.*\r\n\r\nhello$/s)
  await connect(app.url, 'd')
})

for (const [title, server] of [
  ['over TLS', { https: secret }],
  ['by a server of HTTP/2 that also speaks HTTP/1', { http2: true, https: { ...secret, allowHTTP1: true } }]
] as unknown as Array<[string, FastifyServerOptions]>) {
  t.test(`a request that asks for HTTP/2 is answered ${title}`, async t => {
    const app = await serving(t, { server, options: { authenticate: false, guard: false } })
    const socket = connectTls({ port: Number(new URL(app.url).port), host: '127.0.0.1', rejectUnauthorized: false, ALPNProtocols: ['http/1.1'] })
    const said = await converse(socket, requestOf('POST', '/host', { body: '{"a":1}' }), requestOf('GET', '/devices'), last('/host'))
    t.strictSame(statuses(said), [200, 200, 200])
  })
}

t.test('a request that asks for HTTP/2 is answered on the other addresses of localhost', async t => {
  const app = Fastify()
  await app.register(devices)
  app.get('/host', async () => ({ from: 'host' }))
  t.teardown(() => app.close())
  await app.listen({ port: 0 })
  for (const { address, port } of app.addresses() as AddressInfo[]) {
    const said = await converse(connectTcp(port, address), requestOf('GET', '/host'), last('/host'))
    t.strictSame(statuses(said), [200, 200], address)
  }
})
