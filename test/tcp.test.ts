import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, existsSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs'
import { connect as connectTcp, type AddressInfo, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { connect as connectTls, type ConnectionOptions } from 'node:tls'
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import devices, { Failure, localBackplane, type ConnectRequest, type Options } from '../lib/index.ts'
import { LineSplitter } from '../lib/protocol/line-splitter.ts'
import { tcp, type TcpTransport, type TcpOptions } from '../lib/transports/tcp/index.ts'
import { TcpOptionsSchema } from '../lib/transports/tcp/options.ts'
import { certificate } from './certificates.ts'
import { gate, random } from './fakes.ts'
import { programAt } from './programs.ts'
import { root } from './root.ts'
import { connect, connectLines, listen, until } from './support.ts'

const folder = mkdtempSync(join(tmpdir(), 'devices-'))
const ca = certificate('ca.pem')
const rpc = (members: object) => `${JSON.stringify({ jsonrpc: '2.0', ...members })}\n`
const connectLine = (deviceId: unknown, more: object = {}) => rpc({ id: 1, method: 'connect', params: { deviceId, ...more } })

interface TestServer {
  app: FastifyInstance & { url: string }
  transport: TcpTransport
  port: number
  /** Opens a connection and records its lines; `closed` resolves with them when the server has closed its side. */
  dial (first?: string | Buffer): RawConnection
}

interface RawConnection {
  socket: Socket
  lines: any[]
  closed: Promise<any[]>
}

async function serve (t: Pick<Test, 'teardown'>, options: Options = {}, tcpOptions: Partial<TcpOptions> = {}): Promise<TestServer> {
  const transport = tcp({ port: 0, ...tcpOptions })
  const app = await listen(t, { ...options, transports: [transport] })
  const { port } = transport.address as AddressInfo
  return { app, transport, port, dial: first => record(connectTcp({ port, host: '127.0.0.1', allowHalfOpen: true }), first) }
}

function record (socket: Socket, first?: string | Buffer): RawConnection {
  const lines: any[] = []
  let text = ''
  socket.on('error', () => {})
  socket.on('data', chunk => {
    const pieces = (text + chunk.toString()).split('\n')
    text = pieces.pop()!
    for (const piece of pieces) lines.push(JSON.parse(piece))
  })
  const closed = once(socket, 'end').then(() => { socket.end(); return lines })
  closed.catch(() => {})
  if (first !== undefined) socket.write(first)
  return { socket, lines, closed }
}

const closeLine = (code: number, reason: string | RegExp) => ({ method: 'close', params: { code, reason } })

/** The scripts in the docs, each with its output. */
function scripts (): Array<{ script: string, output: string }> {
  const text = readFileSync(join(root, 'docs/tcp.md'), 'utf8')
  return [...text.matchAll(/```sh\n([\s\S]*?)```\n\n```\n([\s\S]*?)```/g)].map(([, script, output]) => ({ script: script!, output: output! }))
}

/** A folder with a substitute for `nc`: sends its input at the speed of typing, and prints what it receives until the server closes. */
function substituteNc (): string {
  const bin = mkdtempSync(join(folder, 'bin-'))
  const program = `#!${process.execPath}
    const [host, port] = process.argv.slice(2)
    const socket = require('node:net').connect({ host, port, allowHalfOpen: true }, async () => {
      for await (const line of require('node:readline').createInterface({ input: process.stdin })) {
        socket.write(line + '\\n')
        await new Promise(resolve => setTimeout(resolve, 200))
      }
    })
    socket.pipe(process.stdout)
    socket.on('end', () => { socket.end(); process.stdin.destroy() })
  `
  writeFileSync(join(bin, 'nc'), program)
  chmodSync(join(bin, 'nc'), 0o755)
  return bin
}

t.test('the scripts in the docs print what the docs say', async t => {
  const { app, port } = await serve(t)
  const PATH = [...programAt('nc') ? [] : [substituteNc()], process.env.PATH].join(delimiter)
  /** Replaces the values that differ in each run. */
  const normalize = (text: string) => text.replaceAll(/"(generation|now)":\d+/g, '"$1":0').replace(/"id":"[\w-]+"/, '"id":"?"')
  t.ok(scripts().length >= 3)
  for (const { script, output } of scripts()) {
    const shell = spawn('sh', ['-c', script.replaceAll('127.0.0.1 4000', `127.0.0.1 ${port}`)], { env: { ...process.env, PATH }, stdio: ['ignore', 'pipe', 'inherit'] })
    let printed = ''
    shell.stdout.on('data', chunk => { printed += String(chunk) })
    await once(shell, 'close')
    t.equal(normalize(printed), normalize(output))
  }
  await until(() => app.devices.size === 0)
})

t.test('a connection whose first line is not connect is closed at once, with the documented code', async t => {
  const { app, dial } = await serve(t)
  const hint = 'The first message is connect {deviceId, token}'
  const tlsHello = Buffer.from('160301007a010000760303', 'hex')
  const cases: Array<[what: string, first: string | Buffer, code: number, reason: string]> = [
    ['HTTP', 'GET /ws?deviceId=d HTTP/1.1\r\nHost: localhost\r\n\r\n', 1002, hint],
    ['HTTP from a page that smuggles a message', `POST / HTTP/1.1\r\nContent-Length: 99\r\n\r\n${connectLine('d')}`, 1002, hint],
    ['a TLS hello', tlsHello, 1002, hint],
    ['a batch', `[${connectLine('d').trim()}]\n`, 1002, hint],
    ['no JSON', '{nonsense\n', 1002, hint],
    ['another notice', rpc({ method: 'message', params: {} }), 1002, hint],
    ['a result', rpc({ id: 1, result: {} }), 1002, hint],
    ['blanks, then nonsense', '\r\n  \n?\n', 1002, hint],
    ['a line that never ends', `{${'x'.repeat(20_000)}`, 1009, 'sent a message too large'],
    ['invalid UTF-8', Buffer.concat([Buffer.from('{'), Buffer.from([0xff, 0xfe, 0x0a])]), 1007, 'sent text that is not UTF-8']
  ]
  for (const [what, first, code, reason] of cases) t.match(await dial(first).closed, [closeLine(code, reason)], what)
  const typing = dial('\r\n')
  await once(typing.socket, 'connect')
  await new Promise(resolve => setTimeout(resolve, 50))
  typing.socket.write('?')
  t.match(await typing.closed, [closeLine(1002, hint)], 'Enter, and later nonsense')
  t.match(await dial(rpc({ id: 7, method: 'ping' })).closed, [{ id: 7, error: { code: -32600, message: hint } }, closeLine(1002, hint)], 'another call is answered first')
  t.equal(app.devices.size, 0)
  t.match(app.devices.stats(), { admissions: 0, refusals: { protocol: 10, size: 1, text: 1 } })
})

t.test('silent and half-closed connections are closed in time', async t => {
  const { app, dial } = await serve(t, { admissionTimeout: 50 })
  const silent = [closeLine(4508, 'no connect message in time')]
  t.match(await dial().closed, silent)
  t.match(await dial('{"jsonrpc":').closed, silent, 'a line that is not complete in time')
  const half = dial()
  half.socket.end()
  t.match(await half.closed, silent)
  const reset = dial()
  await once(reset.socket, 'connect')
  await until(() => app.devices.stats().refusals.silent === 3)
  reset.socket.resetAndDestroy()
  await until(() => app.devices.stats().refusals.lost === 1 || app.devices.stats().refusals.silent === 4)
  t.equal(app.devices.size, 0)
})

t.test('a device that closes its side has left, and its requests are not answered any more', async t => {
  const { app, dial } = await serve(t)
  app.devices.handle('wait', () => new Promise(() => {}))
  const half = dial(connectLine('d'))
  await until(() => half.lines.length === 2)
  half.socket.end(rpc({ id: 2, method: 'wait' }))
  t.match((await half.closed).map(({ method }) => method), [undefined, 'welcome'])
  t.match(await app.devices.describe('d'), { connected: false, lastDisconnect: { code: 1005 } })
})

t.test('a device may close with a code, and an invalid close notice is ignored', async t => {
  const { app, dial } = await serve(t)
  const received: unknown[] = []
  app.devices.on('message', data => { received.push(data) })
  const device = dial(connectLine('d'))
  device.socket.write(rpc({ method: 'message', params: { data: 'close' } }))
  device.socket.write(`[${rpc({ method: 'close', params: { code: 1000 } }).trim()}]\n`)
  for (const params of [undefined, { code: 'x' }, { code: 7 }, { code: 5_000 }]) device.socket.write(rpc({ method: 'close', params }))
  device.socket.write(rpc({ id: 9, method: 'ping' }))
  await until(() => device.lines.some(({ id }) => id === 9))
  t.strictSame(received, ['close'])
  device.socket.write(rpc({ method: 'close', params: { code: 4_000, reason: 7 } }))
  await device.closed
  t.match(await app.devices.describe('d'), { lastDisconnect: { code: 4_000, reason: '' } })
})

t.test('lines are read however the bytes are split', async t => {
  const { app, dial } = await serve(t)
  const received: unknown[] = []
  app.devices.on('message', data => { received.push(data) })
  const text = 'é 🦊 \u2028'
  const message = Buffer.from(rpc({ id: 2, method: 'message', params: { data: text } }))
  const slowly = dial()
  slowly.socket.setNoDelay(true)
  for (const byte of Buffer.concat([Buffer.from(connectLine('slow')), message])) {
    slowly.socket.write(Uint8Array.of(byte))
    await new Promise(resolve => setImmediate(resolve))
  }
  await until(() => received.length === 1)

  const fox = message.indexOf('🦊') + 2
  slowly.socket.write(Buffer.concat([message, message.subarray(0, fox)]))
  await until(() => received.length === 2)
  slowly.socket.write(Buffer.concat([message.subarray(fox), message.subarray(0, fox)]))
  await until(() => received.length === 3)
  slowly.socket.write(message.subarray(fox))
  await until(() => received.length === 4)
  t.strictSame(received, [text, text, text, text])

  const pings = Array.from({ length: 100 }, (_, n) => rpc({ id: n, method: 'ping' }).replace('\n', n % 2 ? '\r\n' : '\n\r\n')).join('')
  const atOnce = dial(connectLine('fast') + pings)
  await until(() => atOnce.lines.length === 102)
  t.strictSame(atOnce.lines.slice(2).map(({ id }) => id), Array.from({ length: 100 }, (_, n) => n))
})

t.test('a line may be as long as a message, and no longer', async t => {
  const { app, dial } = await serve(t)
  let size = 0
  app.devices.on('message', data => { size = (data as string).length })
  const envelope = rpc({ id: 2, method: 'message', params: { data: '' } }).length - 1
  const device = dial(connectLine('d'))
  device.socket.write(rpc({ id: 2, method: 'message', params: { data: 'x'.repeat(65_536 - envelope) } }))
  await until(() => size > 0)
  t.equal(size + envelope, 65_536)
  for (let n = 0; n < 20; n++) device.socket.write('y'.repeat(60_000))
  t.match((await device.closed).at(-1), closeLine(1009, 'sent a message too large'))
  const binary = dial(connectLine('e'))
  await until(() => binary.lines.length === 2)
  binary.socket.write(Buffer.from([0xff, 0x0a]))
  t.match((await binary.closed).at(-1), closeLine(1007, 'sent text that is not UTF-8'))
})

t.test('empty lines count against the rate like messages', async t => {
  const { dial } = await serve(t, { rate: 1, burst: 10 })
  const device = dial(connectLine('d'))
  device.socket.write('\n'.repeat(100))
  t.match((await device.closed).at(-1), closeLine(4029, 'sent too much'))
})

t.test('a refused device gets the reason, in a failure if it made a call, and in a close code that says whether to reconnect', async t => {
  const { app, dial } = await serve(t, {
    authenticate ({ deviceId, token }) {
      if (deviceId === 'forbidden') throw new Failure('forbidden')
      return token === 'right'
    }
  })
  t.match(await dial(connectLine('d', { token: 'wrong' })).closed, [{ id: 1, error: { code: -32009 } }, closeLine(4501, 'Credentials are missing or wrong')])
  t.match(await dial(connectLine('d', { token: 7 })).closed, [{ id: 1, error: { code: -32009 } }, closeLine(4501, /missing/)])
  t.match(await dial(connectLine('forbidden')).closed, [{ id: 1, error: { code: -32008 } }, closeLine(4503, 'Not allowed')])
  t.match(await dial(rpc({ method: 'connect', params: { deviceId: 'a b' } })).closed, [closeLine(4503, /device id/)])
  t.match(await dial(rpc({ method: 'connect' })).closed, [closeLine(4503, /device id/)])
  t.match(await dial(connectLine('d', { token: 'right' })).lines, [])
  await until(() => app.devices.has('d'))
  t.match(app.devices.stats(), { admissions: 1, refusals: { unauthenticated: 2, forbidden: 1, 'bad-id': 2 } })
})

t.test('a device that could not be authenticated because of an error may reconnect', async t => {
  const { dial } = await serve(t, {
    authenticate ({ deviceId }) {
      if (deviceId === 'd') throw new Error('the database is away')
      return new Promise<never>(() => {})
    },
    admissionTimeout: 50
  })
  t.match((await dial(connectLine('d')).closed).at(-1), closeLine(1013, /missing/))
  t.match((await dial(connectLine('e')).closed).at(-1), closeLine(1013, /too long/))
})

t.test('authenticate gets the addresses of a device', async t => {
  let connectRequest: ConnectRequest | undefined
  const { dial, port, app } = await serve(t, { authenticate: given => { connectRequest = given; return true } })
  dial(connectLine('d', { token: 'abc' }))
  await until(() => app.devices.has('d'))
  t.match(connectRequest, { deviceId: 'd', token: 'abc', address: '127.0.0.1', localAddress: '127.0.0.1', headers: {}, protocols: [] })
  t.equal(connectRequest!.certificate, undefined)
  t.ok(port > 0)
})

t.test('a device that leaves during authentication is not registered', async t => {
  const gates = [gate<boolean>(), gate<boolean>(), gate<boolean>()]
  let asked = 0
  const { app, dial } = await serve(t, { authenticate: () => gates[asked++]!.opened })
  const reset = dial(connectLine('d'))
  await until(() => asked === 1)
  reset.socket.resetAndDestroy()
  await until(() => app.devices.stats().refusals.departed === 1)
  const half = dial(connectLine('d'))
  await until(() => asked === 2)
  half.socket.end()
  t.match(await half.closed, [{ id: 1, error: { code: -32026 } }, closeLine(1000, /disconnected/)])
  const talkative = dial(connectLine('d') + rpc({ id: 2, method: 'ping' }))
  await until(() => asked === 3)
  const more = rpc({ method: 'message', params: { data: 'x'.repeat(1_000) } })
  for (let n = 0; n < 150; n++) talkative.socket.write(more)
  for (const gate of gates) gate.open(true)
  await until(() => talkative.lines.length >= 3)
  t.match(talkative.lines.slice(0, 3), [{ id: 1, result: {} }, { method: 'welcome' }, { id: 2, result: {} }], 'early messages waited')
  t.equal(app.devices.stats().admissions, 1)
})

t.test('a device that sends nothing after a ping is disconnected, and any line proves life', async t => {
  const { dial } = await serve(t, { pingInterval: 50, pongTimeout: 150, stallTimeout: 1_000 })
  const mute = dial(connectLine('mute'))
  const typist = dial(connectLine('typist'))
  const typing = setInterval(() => typist.socket.write('\n'), 20)
  t.teardown(() => clearInterval(typing))
  t.match((await mute.closed).slice(2), [{ method: 'ping', id: 1 }])
  t.match(mute.lines.at(-1), closeLine(4012, 'no pong'))
  const late = typist.lines.findLast(({ method }) => method === 'ping')
  typist.socket.write(rpc({ id: late.id, error: { code: -32601, message: 'no such method' } }))
  await until(() => typist.lines.filter(({ method }) => method === 'ping').length > 2)
  t.notOk(typist.lines.some(({ method }) => method === 'close'))
})

t.test('connections that have not been admitted are limited in number', async t => {
  const { app, dial } = await serve(t, { admissionTimeout: 60_000 }, { maxUnknown: 3 })
  const known = dial(connectLine('known'))
  await until(() => known.lines.length === 2)
  const waiting = [dial(), dial(), dial()]
  await Promise.all(waiting.map(({ socket }) => once(socket, 'connect')))
  t.match(await dial().closed, [closeLine(1013, 'overloaded, try again later')])
  waiting[0]!.socket.write(connectLine('late'))
  await until(() => app.devices.has('late'))
  const again = dial(connectLine('again'))
  await until(() => app.devices.has('again'))
  t.match(app.devices.stats(), { admissions: 3, refusals: { overloaded: 1 } })
  t.notOk(again.lines.some(({ method }) => method === 'close'))
})

t.test('a device has one owner over all transports, and its letters reach it over any of them', async t => {
  const { app, port, dial } = await serve(t)
  const web = await connect(app.url, 'd')
  const line = await connectLines(connectTcp(port, '127.0.0.1'), 'd')
  t.equal((await web.closed).code, 4509)
  const back = await connect(app.url, 'd')
  t.equal((await line.closed).code, 4509)
  t.equal(app.devices.size, 1)
  await app.devices.broadcast('to both transports', {})
  t.equal((await back.message()).params.data, 'to both transports')
  void app.devices.send('d', Buffer.from('unacknowledged'), { ttl: 60_000 })
  t.equal((await back.message()).data!.toString(), 'unacknowledged')
  const other = (await connectLines(connectTcp(port, '127.0.0.1'), 'd')).handle('message', () => ({}))
  t.equal(Buffer.from((await other.message()).params.base64, 'base64').toString(), 'unacknowledged')
  await until(async () => (await app.devices.describe('d')).waiting === 0)
  const both = await connect(app.url, 'e')
  t.match(await app.devices.broadcast('all', {}), { sent: 2 })
  t.equal((await both.message()).params.data, 'all')
  dial()
})

t.test('a device that cannot be owned may reconnect later', async t => {
  const { dial } = await serve(t, { backplane: { ...localBackplane(), own: async () => { throw new Failure('unreachable') } } })
  t.match(await dial(connectLine('d')).closed, [{ id: 1, result: {} }, closeLine(1013, 'overloaded, try again later')])
})

t.test('devices in the handshake learn when to reconnect if the node drains', async t => {
  const authenticated = gate<boolean>()
  const { app, dial } = await serve(t, { authenticate: () => authenticated.opened, retrySpread: 500, closeTimeout: 100 })
  const [silent, asking] = [dial(), dial(connectLine('d'))]
  const reset = dial(connectLine('e'))
  await once(silent.socket, 'connect')
  await until(() => asking.socket.bytesWritten > 0 && reset.socket.bytesWritten > 0)
  await new Promise(resolve => setTimeout(resolve, 20))
  const appClosed = app.close()
  const [one, two] = await Promise.all([silent.closed, asking.closed])
  t.match(one, [closeLine(1012, /^retry=\d{1,3}$/)])
  t.match(two, [{ id: 1, error: { code: -32021 } }, closeLine(1012, /^retry=\d{1,3}$/)])
  await appClosed
  t.match(app.devices.stats().refusals, { leaving: 1, draining: 2 })
})

t.test('a device that does not close after a close notice is cut', async t => {
  const { app, port } = await serve(t, { closeTimeout: 50 })
  const socket = connectTcp({ port, host: '127.0.0.1', allowHalfOpen: true }).resume()
  socket.write(connectLine('d'))
  await until(() => app.devices.has('d'))
  const socketClosed = new Promise(resolve => socket.once('close', resolve))
  await app.devices.disconnect('d')
  await once(socket, 'end')
  socket.on('error', () => {})
  const talking = setInterval(() => socket.write(rpc({ id: 9, method: 'ping' })), 10)
  t.teardown(() => clearInterval(talking))
  await socketClosed
  t.equal(app.devices.stats().messages.in, 0)
})

t.test('connections that linger at the drain deadline are cut', async t => {
  const { app, port } = await serve(t, { drainTimeout: 200, closeTimeout: 60_000 })
  const socket = connectTcp({ port, host: '127.0.0.1', allowHalfOpen: true }).resume()
  socket.on('error', () => {})
  socket.write(connectLine('d'))
  await until(() => app.devices.has('d'))
  const socketClosed = new Promise(resolve => socket.once('close', resolve))
  const appClosed = app.close()
  await once(socket, 'end')
  await appClosed
  const talking = setInterval(() => socket.write('\n'), 10)
  t.teardown(() => clearInterval(talking))
  await socketClosed
})

t.test('the transport gives its address, which is loopback by default, and a taken port fails the start', async t => {
  const transport = tcp({ port: 0 })
  const app = Fastify()
  await app.register(devices, { transports: [transport] })
  t.equal(transport.address, null)
  await app.ready()
  t.match(transport.address, { address: '127.0.0.1', port: Number })
  const taken = Fastify()
  t.teardown(() => taken.close())
  await taken.register(devices, { transports: [tcp({ port: (transport.address as AddressInfo).port })] })
  await t.rejects(async () => { await taken.ready() }, { code: 'EADDRINUSE' })
  await app.close()
  t.equal(transport.address, null)
  t.throws(() => tcp({}), /one of the options "port" and "path"/)
  t.throws(() => tcp({ port: 1, path: '/x' }), /one of the options "port" and "path"/)
})

t.test('a wrong or unknown option is named', async t => {
  t.throws(() => tcp({ port: 0, hots: '::1' } as TcpOptions), { message: /tcp\(\) has no option "hots"/ })
  for (const [name, value] of Object.entries({ port: 99_999, host: 5, tls: true, maxUnknown: 0 })) {
    t.throws(() => tcp({ port: 0, [name]: value }), { message: new RegExp(`tcp\\(\\): the option "${name}" is wrong`) })
  }
  t.throws(() => tcp({ path: 'x'.repeat(104) }), { message: /the option "path" is wrong/ })
})

t.test('an editor shows the description and the default of every option', async t => {
  const source = readFileSync(join(root, 'lib/transports/tcp/options.ts'), 'utf8')
  const documented = [...source.matchAll(/\/\*\*\n {3}\* (.+)\.\n {3}\*\n {3}\* @default (.+)\n {3}\*\/\n {2}(\w+)\?:/g)]
  const shown = (value: unknown) => typeof value === 'number' ? value.toLocaleString('en').replaceAll(',', '_') : typeof value === 'string' ? `'${value}'` : String(value)
  t.strictSame(
    documented.map(([, description, value, name]) => ({ name, value, description })),
    Object.entries(TcpOptionsSchema.properties).map(([name, { default: value, description }]) => ({ name, value: shown(value), description }))
  )
})

t.test('a stale Unix socket of a killed process is replaced, and nothing else is', async t => {
  const open = async (path: string) => {
    const app = Fastify()
    t.teardown(() => app.close())
    await app.register(devices, { transports: [tcp({ path })] })
    await app.ready()
  }
  const stale = join(folder, 'stale.sock')
  spawnSync(process.execPath, ['-e', `require('net').createServer().listen(${JSON.stringify(stale)}, () => process.kill(process.pid, 'SIGKILL'))`])
  t.ok(existsSync(stale))
  await open(stale)
  await connectLines(connectTcp(stale), 'd')
  await t.rejects(open(stale), { code: 'EADDRINUSE' }, 'a process listens there')
  const file = join(folder, 'file')
  writeFileSync(file, 'precious')
  await t.rejects(open(file), { code: 'EADDRINUSE' })
  t.equal(readFileSync(file, 'utf8'), 'precious')
})

t.test('a connection that was reset before it is accepted is counted as lost', async t => {
  const { app, port } = await serve(t)
  // spawnSync blocks, so this process accepts nothing before the other one is done
  spawnSync(process.execPath, ['-e', `const socket = require('net').connect(${port}, '127.0.0.1')
    socket.write(${JSON.stringify(connectLine('d'))}, () => socket.resetAndDestroy())`])
  await until(() => Object.keys(app.devices.stats().refusals).length > 0)
  t.strictSame(app.devices.stats().refusals, { lost: 1 })
})

t.test('the transport may listen on IPv6', async t => {
  const transport = tcp({ port: 0, host: '::1' })
  const app = await listen(t, { transports: [transport] })
  const device = await connectLines(connectTcp((transport.address as AddressInfo).port, '::1'), 'd')
  t.match(await app.devices.describe('d'), { address: '::1' })
  await device.close()
})

/** Connects over TLS, with a client certificate or without. */
function connectOverTls (port: number, options: ConnectionOptions = {}): Socket {
  return connectTls({ port, host: '127.0.0.1', ca, ...options })
}

t.test('a client certificate identifies a device', async t => {
  const tls = { key: certificate('server.key'), cert: certificate('server.pem'), ca, requestCert: true, rejectUnauthorized: false }
  const { app, port } = await serve(t, { authenticate: ({ deviceId, certificate }) => certificate?.subject.CN === deviceId }, { tls })
  const deviceCertificate = { key: certificate('device.key'), cert: certificate('device.pem') }
  await connectLines(connectOverTls(port, deviceCertificate), 'sensor-7')
  t.match((await record(connectOverTls(port, deviceCertificate), connectLine('sensor-8')).closed).at(-1), closeLine(4501, /missing/))
  t.match((await record(connectOverTls(port), connectLine('sensor-7')).closed).at(-1), closeLine(4501, /missing/))
  t.equal(app.devices.size, 1)
})

t.test('a connection that does not finish its TLS handshake is cut, and counts as not admitted', async t => {
  const tls = { key: certificate('server.key'), cert: certificate('server.pem') }
  const { app, port } = await serve(t, { admissionTimeout: 200 }, { tls, maxUnknown: 1 })
  const plain = connectTcp(port, '127.0.0.1')
  plain.on('error', () => {})
  await once(plain, 'connect')
  const second = connectTcp(port, '127.0.0.1')
  second.on('error', () => {}).resume()
  await once(second, 'close')
  await until(() => app.devices.stats().refusals.overloaded === 1)
  plain.resume()
  await once(plain, 'close')
  t.ok(app.devices.stats().refusals.protocol! >= 1)
  await connectLines(connectOverTls(port), 'd')
  t.equal(app.devices.size, 1)
})

t.test('a TLS error disconnects the device', async t => {
  const tls = { key: certificate('server.key'), cert: certificate('server.pem') }
  const { app, port } = await serve(t, { pingInterval: 600_000 }, { tls })
  const raw = connectTcp(port, '127.0.0.1')
  await once(raw, 'connect')
  const socket = connectTls({ socket: raw, ca })
  await connectLines(socket, 'd')
  socket.on('error', () => {})
  raw.write('no TLS record')
  await until(() => !app.devices.has('d'))
  t.equal((await app.devices.describe('d')).lastDisconnect!.code, 1006)
})

t.test('the line splitter finds the same lines however bytes are split, and buffers little', async t => {
  const chance = random(7)
  const texts = Array.from({ length: 300 }, (_, n) => 'x'.repeat(Math.floor(chance() * chance() * 2_000)) + n)
  const bytes = Buffer.from(texts.join('\n') + '\n')
  for (const maxSize of [1, 7, 300, 5_000, bytes.length]) {
    const splitter = new LineSplitter(2_010)
    const found: string[] = []
    for (let at = 0; at < bytes.length;) {
      const size = 1 + Math.floor(chance() * maxSize)
      splitter.add(bytes.subarray(at, at + size))
      if (chance() < 0.3) splitter.add(bytes.subarray(at + size, at += 2 * size)) // several chunks before a line is taken
      else at += size
      for (let line = splitter.next(); line; line = splitter.next()) found.push(line.toString())
    }
    t.strictSame(found, texts, `chunks of up to ${maxSize}`)
    t.equal(splitter.waiting, 0)
  }
  const endless = new LineSplitter(1_000)
  for (let n = 0; n < 1_000; n++) {
    endless.add(Buffer.from('x'))
    t.equal(endless.next(), undefined)
  }
  endless.add(Buffer.from('x'))
  t.throws(() => endless.next(), { code: 'MESSAGE_TOO_LARGE' })
  const whole = new LineSplitter(10)
  whole.add(Buffer.from('0123456789\n0123456789a\n'))
  t.equal(whole.next()!.toString(), '0123456789')
  t.throws(() => whole.next(), { code: 'MESSAGE_TOO_LARGE' })

  t.equal(whole.skip(), true)
  whole.add(Buffer.from('ends 0123456789'))
  t.throws(() => whole.next(), { code: 'MESSAGE_TOO_LARGE' })
  for (let piece = 0; piece < 3; piece++) {
    t.equal(whole.skip(), false)
    t.equal(whole.waiting, 0)
    whole.add(Buffer.from('0123456789'))
  }
  whole.add(Buffer.from('\nnext\n'))
  t.equal(whole.skip(), true)
  t.equal(whole.next()!.toString(), 'next')
  t.equal(whole.next(), undefined)
})
