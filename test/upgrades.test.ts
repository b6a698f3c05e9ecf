import { once } from 'node:events'
import { connect as connectTcp, type AddressInfo, type Socket } from 'node:net'
import { connect as connectTls } from 'node:tls'
import { text } from 'node:stream/consumers'
import fastifyWebsocket from '@fastify/websocket'
import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import t, { type Test } from 'tap'
import devices, { type Options } from '../lib/index.ts'
import { certificate } from './certificates.ts'
import { gate } from './fakes.ts'
import { connect, open, until } from './support.ts'

const tlsOptions = { key: certificate('server.key'), cert: certificate('server.pem') }

/** The headers of curl and Java before they know whether the server speaks HTTP/2. */
const H2C = ['Connection: Upgrade, HTTP2-Settings', 'Upgrade: h2c', 'HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA']

function encodeRequest (method: string, path: string, { body = '', headers = H2C }: { body?: string, headers?: string[] } = {}): string {
  const contentHeaders = body === '' ? [] : ['Content-Type: application/json', `Content-Length: ${body.length}`]
  return [`${method} ${path} HTTP/1.1`, 'Host: localhost', ...headers, ...contentHeaders, '', body].join('\r\n')
}

const lastRequest = (path: string) => encodeRequest('GET', path, { headers: ['Connection: close'] })

/** Everything that the server sends on one connection until it closes it. */
async function converse (socket: Socket, ...parts: string[]): Promise<string> {
  for (const part of parts) socket.write(part)
  return await text(socket)
}

const statuses = (response: string) => [...response.matchAll(/HTTP\/1\.1 (\d+)/g)].map(([, status]) => Number(status))

async function serve (t: Test, { options, server, before }: {
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

const hosts: Array<[title: string, given: Parameters<typeof serve>[1]]> = [
  ['an application', {}],
  ['an application that registered @fastify/websocket itself', { before: async app => { await app.register(fastifyWebsocket) } }],
  ['an application with the plugin in two scopes', { before: async app => { await app.register(async scope => { await scope.register(devices, { prefix: '/two' }) }) } }]
]

for (const [title, given] of hosts) {
  t.test(`${title} answers a request that asks for HTTP/2 as the plain request it also is`, async t => {
    const app = await serve(t, given)
    const device = await connect(app.url, 'd')
    const response = await converse(app.dial(),
      encodeRequest('GET', '/host'),
      encodeRequest('POST', '/host', { body: '{"a":1}' }),
      encodeRequest('GET', '/devices'),
      encodeRequest('POST', '/broadcast', { body: '{"b":2}' }),
      encodeRequest('GET', '/ws?deviceId=e'),
      encodeRequest('GET', '/nowhere'),
      encodeRequest('GET', '/host', { headers: ['Connection: Upgrade', 'Upgrade: anything'] }),
      lastRequest('/host'))
    t.strictSame(statuses(response), [200, 200, 200, 200, 426, 404, 200, 200])
    t.match(response, '{"from":"host","body":{"a":1}}')
    t.match(await device.message(), { params: { data: { b: 2 } } })
    t.equal(app.devices.size, 1)
    await device.close()
    await connect(app.url, 'd')
  })
}

t.test('a body that arrives later, or in chunks, belongs to its request', async t => {
  const app = await serve(t)
  const socket = app.dial()
  const [early, late] = [encodeRequest('POST', '/host', { body: '{"later":true}' }).slice(0, -8), '":true}'.padStart(8, 'r')]
  socket.write(early)
  await until(() => app.sockets.size > 0 && [...app.sockets].every(({ bytesRead }) => bytesRead === early.length))
  const chunked = encodeRequest('POST', '/host', { headers: [...H2C, 'Transfer-Encoding: chunked', 'Content-Type: application/json'] })
  const response = await converse(socket, late, chunked, '7\r\n{"n":[1\r\n2\r\n]}\r\n0\r\n\r\n', lastRequest('/host'))
  t.strictSame(statuses(response), [200, 200, 200])
  t.match(response, '"body":{"later":true}')
  t.match(response, '"body":{"n":[1]}')
})

t.test('a request that asks for HTTP/2 waits until earlier ones are answered', async t => {
  const app = await serve(t, {
    before: async app => {
      app.get('/slow', async () => {
        await new Promise(resolve => setImmediate(resolve))
        return { slow: true }
      })
    }
  })
  const plain = encodeRequest('GET', '/slow', { headers: [] })
  const response = await converse(app.dial(), plain + plain + encodeRequest('GET', '/slow') + encodeRequest('GET', '/host') + lastRequest('/host'))
  t.strictSame(response.match(/\{.*?\}/g), ['{"slow":true}', '{"slow":true}', '{"slow":true}', '{"from":"host"}', '{"from":"host"}'])
})

t.test('a reset while such a request waits affects no other connection', async t => {
  const reset = gate()
  const app = await serve(t, {
    before: async app => {
      app.get('/slow', async ({ raw }, reply) => {
        reply.hijack()
        await reset.opened
        // writing makes the server notice the reset
        await until(() => {
          reply.raw.write('part of the answer')
          return raw.socket.destroyed
        })
      })
    }
  })
  const socket = app.dial()
  socket.on('error', () => {})
  socket.write(encodeRequest('GET', '/slow', { headers: [] }) + encodeRequest('GET', '/host'))
  await until(() => [...app.sockets].some(one => one.listenerCount('error') > 0 && one.listenerCount('data') === 0))
  const [serverSocket] = app.sockets
  socket.resetAndDestroy()
  reset.open()
  await until(() => serverSocket!.closed)
  t.equal(statuses(await converse(app.dial(), lastRequest('/host')))[0], 200)
})

t.test('many such requests on one connection leave no listener behind', async t => {
  const app = await serve(t)
  const socket = app.dial()
  const listenersAfter = async (count: number) => {
    for (let n = 0; n < count; n++) {
      socket.write(encodeRequest('GET', '/host'))
      await once(socket, 'data')
    }
    const [serverSocket] = app.sockets
    return serverSocket!.eventNames().map(name => `${String(name)} ${serverSocket!.listenerCount(name)}`).toSorted()
  }
  const first = await listenersAfter(2)
  t.strictSame(await listenersAfter(30), first)
  socket.destroy()
})

t.test('a request of which Node dropped headers is refused, because its body could pass for another request', async t => {
  const app = await serve(t)
  const many = Array.from({ length: 1_100 }, (_, at) => `h${at}: 1`)
  const response = await converse(app.dial(), encodeRequest('POST', '/host', { body: lastRequest('/host'), headers: [...H2C, ...many] }))
  t.strictSame(statuses(response), [431])
})

t.test('an upgrade that another listener of the host handles is left to it', async t => {
  const app = await serve(t, {
    before: async app => {
      app.server.on('upgrade', ({ headers }, socket) => {
        if (headers.upgrade === 'echo') socket.end('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello')
      })
    }
  })
  t.match(await converse(app.dial(), encodeRequest('GET', '/host', { headers: ['Connection: Upgrade', 'Upgrade: echo'] })), /^HTTP\/1\.1 101.*\r\n\r\nhello$/s)
  await connect(app.url, 'd')
})

for (const [title, server] of [
  ['over TLS', { https: tlsOptions }],
  ['by a server of HTTP/2 that also speaks HTTP/1', { http2: true, https: { ...tlsOptions, allowHTTP1: true } }]
] as unknown as Array<[string, FastifyServerOptions]>) {
  t.test(`a request that asks for HTTP/2 is answered ${title}`, async t => {
    const app = await serve(t, { server, options: { authenticate: false, guard: false } })
    const socket = connectTls({ port: Number(new URL(app.url).port), host: '127.0.0.1', rejectUnauthorized: false, ALPNProtocols: ['http/1.1'] })
    const response = await converse(socket, encodeRequest('POST', '/host', { body: '{"a":1}' }), encodeRequest('GET', '/devices'), lastRequest('/host'))
    t.strictSame(statuses(response), [200, 200, 200])
  })
}

t.test('a request that asks for HTTP/2 is answered on the other addresses of localhost', async t => {
  const app = Fastify()
  await app.register(devices)
  app.get('/host', async () => ({ from: 'host' }))
  t.teardown(() => app.close())
  await app.listen({ port: 0 })
  for (const { address, port } of app.addresses() as AddressInfo[]) {
    const response = await converse(connectTcp(port, address), encodeRequest('GET', '/host'), lastRequest('/host'))
    t.strictSame(statuses(response), [200, 200], address)
  }
})
