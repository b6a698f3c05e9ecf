import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import t from 'tap'
import { reasons, closeCodes } from '../lib/protocol/errors.ts'
import { proxyHeaders } from '../lib/gateway/protected-mode.ts'
import { Devices } from '../lib/gateway/devices.ts'
import { OptionsSchema } from '../lib/gateway/options.ts'
import { WebhookOptionsSchema } from '../lib/gateway/webhook-options.ts'
import { root } from './root.ts'
import { connect, request, until } from './support.ts'

const read = (path: string) => readFileSync(join(root, path), 'utf8')

/** The text between a heading of the second level and the next. */
function section (text: string, heading: string): string {
  const start = text.indexOf(`\n## ${heading}\n`)
  if (start === -1) throw new Error(`There is no heading "${heading}"`)
  const end = text.indexOf('\n## ', start + 1)
  return text.slice(start, end === -1 ? undefined : end)
}

/** The cells of the rows of the first table, its head left out, without code marks. */
function table (text: string): string[][] {
  const lines = text.split('\n')
  const start = lines.findIndex(line => /^\|[-|]+\|$/.test(line)) + 1
  const end = lines.findIndex((line, at) => at >= start && !line.startsWith('|'))
  return lines.slice(start, end === -1 ? undefined : end).map(line => line.split('|').slice(1, -1).map(cell => cell.trim()))
}

const plain = (cell: string) => cell.replace(/^`(.*)`$/, '$1')

t.test('docs/options.md lists every option, with its default and its description', async t => {
  const rows = table(section(read('docs/options.md'), 'Options')).map(([name, value, description]) => ({ name: plain(name!), value: plain(value!), description }))
  const options = Object.entries(OptionsSchema.properties).map(([name, { default: value, description }]) => ({ name, value: shown(value), description }))
  t.strictSame(rows, options)

  function shown (value: unknown): string {
    if (value === undefined) return ''
    if (typeof value === 'number') return String(value).replace(/\B(?=(\d{3})+$)/g, '_')
    return JSON.stringify(value).replaceAll('"', "'")
  }
})

t.test('docs/webhooks.md lists every option of an endpoint, with its description', async t => {
  const rows = table(section(read('docs/webhooks.md'), 'A gateway and a receiver')).map(([name, description]) => [plain(name!), description])
  t.strictSame(rows, Object.entries(WebhookOptionsSchema.properties).map(([name, { description }]) => [name, description]))
})

t.test('the protocol names every reason, with its HTTP status and its codes', async t => {
  const rows = table(section(read('docs/protocol.md'), 'Reasons')).map(cells => cells.map(plain))
  t.strictSame(rows, Object.entries(reasons).map(([reason, { status, code, rpc, message }]) => [reason, String(status), code, String(rpc), message]))
})

t.test('the protocol names every close code, and whether the device may reconnect', async t => {
  const rows = table(section(read('docs/protocol.md'), 'Close codes')).map(cells => cells.map(plain))
  t.strictSame(rows, Object.entries(closeCodes).map(([name, { code, reconnect, message }]) => [name, String(code), reconnect ? 'yes' : 'no', message]))
})

t.test('docs/devices.md names everything on app.devices', async t => {
  const page = read('docs/devices.md')
  const members = Object.getOwnPropertyNames(Devices.prototype).filter(name => name !== 'constructor')
  t.strictSame(members.filter(name => !new RegExp(`\\b${name}\\b`).test(page)), [])
})

t.test('the README installs the file that npm pack makes', async t => {
  t.ok(read('README.md').includes(`fastify-devices-${JSON.parse(read('package.json')).version}.tgz`))
})

t.test('the page on security names every header that gives a proxy away', async t => {
  const named = new Set(read('docs/security.md').match(/`[a-z-]+\*?`/g)!.map(plain))
  t.strictSame(proxyHeaders.filter(name => !named.has(name)), [])
})

t.test('the range of a close code of ours says whether to reconnect', async t => {
  for (const { code, reconnect } of Object.values(closeCodes)) {
    if (code >= 4000) t.equal(reconnect, code < 4500, String(code))
  }
})

t.test('every code of a reason, and every close code, is used once', async t => {
  for (const codes of [
    Object.values(reasons).map(({ code }) => code),
    Object.values(reasons).map(({ rpc }) => rpc),
    Object.values(closeCodes).map(({ code }) => code)
  ]) t.equal(new Set<unknown>(codes).size, codes.length)
})

t.test('the first program of the README is the one in example/', async t => {
  const [, program] = section(read('README.md'), 'The first program').match(/```ts\n([\s\S]*?)```/)!
  t.equal(program, read('example/first.ts'))
})

t.test('the first program of the README sends to a device and answers its call', async t => {
  // It is run as it is; only the port that it asks for is another, so that port 3000 may be in use.
  const elsewhere = `
    import net from 'node:net'
    const { listen } = net.Server.prototype
    net.Server.prototype.listen = function (options, ...rest) {
      this.once('listening', () => process.send(this.address().port))
      return listen.call(this, { ...options, port: options.port === 3000 ? 0 : options.port }, ...rest)
    }`
  const { NODE_OPTIONS: _, ...env } = process.env
  const program = spawn(process.execPath, ['--import', `data:text/javascript,${encodeURIComponent(elsewhere)}`, join(root, 'dist/example/first.js')], {
    env, stdio: ['ignore', 'ignore', 'inherit', 'ipc']
  })
  const exited = once(program, 'exit')
  t.teardown(async () => {
    program.kill()
    await exited
  })
  const [port] = await Promise.race([once(program, 'message'), exited.then(() => { throw new Error('The program ended by itself') })])
  const url = `http://localhost:${port}`

  const device = await connect(url, 'abc123')
  t.match(await device.message(), { params: { data: { hello: 'abc123' } } })
  t.match(await request({ url }, 'POST', '/devices/abc123/messages', { hello: 'world' }), { status: 200, body: { status: 'sent' } })
  t.match(await device.message(), { params: { data: { hello: 'world' } } })
  t.match(await request({ url }, 'POST', '/broadcast', { hello: 'all' }), { status: 200, body: { sent: 1 } })
  t.match(await device.message(), { params: { data: { hello: 'all' } } })
  t.match(await device.ask('temperature', { celsius: 21 }), { result: { stored: true, from: 'abc123', params: { celsius: 21 } } })
  await device.close()
  await until(async () => (await request({ url }, 'GET', '/devices')).body.devices.length === 0)
})

t.test('every link in the README and the docs leads somewhere', async t => {
  const pages = [...readdirSync(root), ...readdirSync(join(root, 'docs')).map(name => `docs/${name}`)].filter(name => name.endsWith('.md'))
  for (const page of pages) {
    for (const [, target] of read(page).matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(target!)) continue
      const [path, anchor] = target!.split('#') as [string, string?]
      const file = path === '' ? page : relative(root, join(root, dirname(page), path))
      t.ok(existsSync(join(root, file)), `${page}: ${target}`)
      if (anchor !== undefined) t.ok(anchors(read(file)).includes(anchor), `${page}: ${target}`)
    }
  }

  function anchors (text: string): string[] {
    return [...text.matchAll(/^#+ (.*)$/gm)].map(([, heading]) => heading!.toLowerCase().replace(/[^\w\- ]/g, '').replaceAll(' ', '-'))
  }
})

interface Import {
  from: string
  to: string
}

const files = (readdirSync(join(root, 'lib'), { recursive: true }) as string[]).filter(name => name.endsWith('.ts')).map(name => name.replaceAll('\\', '/'))

const imports: Import[] = files.flatMap(from =>
  [...read(`lib/${from}`).matchAll(/^(?:import|export)\b[^'"]*?\bfrom '(?<to>\.[^']+)'/gm)].map(({ groups }) => ({
    from,
    to: relative(join(root, 'lib'), join(root, 'lib', dirname(from), groups!.to!)).replaceAll('\\', '/')
  }))
)

/** Its first folder; a file without one is a room of its own. */
const roomOf = (file: string) => file.split('/')[0]!

t.test('every import of a file of ours names a file there is', async t => {
  t.ok(imports.length > files.length)
  for (const { from, to } of imports) t.ok(files.includes(to), `${from} imports ${to}`)
})

t.test('the client loads nothing that a browser lacks, the worker no server, and the plugin nothing that is optional', async t => {
  /** The packages that a file loads, and those of all it imports. */
  function packages (file: string, seen = new Set<string>()): string[] {
    if (seen.has(file)) return []
    seen.add(file)
    const own = [...read(`lib/${file}`).matchAll(/^import (?!type)\b[^'"]*?\bfrom '(?<name>[^.'][^']*)'/gm)].map(({ groups }) => groups!.name!)
    return [...own, ...imports.filter(({ from }) => from === file).flatMap(({ to }) => packages(to, seen))]
  }
  t.strictSame(packages('client/index.ts'), [])
  t.strictSame(packages('workers/worker.ts').filter(name => !/^(node:|@sinclair\/typebox|@fastify\/ajv-compiler$)/.test(name)), [])
  t.notOk(packages('index.ts').includes('classic-level'))
  t.strictSame(imports.filter(({ to, from }) => to.startsWith('observe/webhooks/') && !from.startsWith('observe/')).map(({ from }) => from), ['plugin.ts'], 'which imports its type only')
  t.match(read('lib/plugin.ts'), /^import type \{ Webhooks \} from '\.\/observe\/webhooks\/index\.ts'$/m)
  t.strictSame(packages('observe/device-tracer.ts').filter(name => name !== '@opentelemetry/api'), [])
  for (const entry of ['index.ts', 'workers/worker.ts', 'client/index.ts', 'testing/index.ts']) t.notOk(packages(entry).some(name => name.startsWith('@opentelemetry/')), `${entry} loads no tracer`)
  for (const optional of ['transports/tcp/index.ts', 'protocol/ocpp.ts', 'storage/disk/index.ts', 'redis/index.ts', 'nats/index.ts', 'observe/metrics/index.ts', 'observe/tracing.ts', 'testing/index.ts', 'console/index.ts']) t.notOk(imports.some(({ from, to }) => to === optional && !from.startsWith('cli/')), `${optional} is loaded only by those who ask for it`)
})

t.test('the architecture names every room, and each imports only what its row names', async t => {
  const rows = table(section(read('docs/architecture.md'), 'The rooms'))
  const rooms = new Map(rows.map(([room, , allowed]): [string, string[]] => [plain(room!).replace(/\/$/, ''), allowed!.match(/[a-z]+/g) ?? []]))
  t.strictSame([...rooms.keys()].toSorted(), readdirSync(join(root, 'lib')).toSorted())
  for (const { from, to } of imports) {
    const [room, allowed] = [roomOf(from), rooms.get(roomOf(from))!]
    t.ok(room === roomOf(to) || allowed.includes('all') || allowed.includes(roomOf(to)), `${from} imports ${to}`)
  }
})

t.test('the command line uses what an application can import', async t => {
  const entries = new Set(Object.values(JSON.parse(read('package.json')).exports).map(entry => (entry as { default?: string }).default?.replace(/^\.\/dist\/lib\//, '').replace(/js$/, 'ts')))
  const used = files.filter(file => roomOf(file) === 'cli').flatMap(from => [...read(`lib/${from}`).matchAll(/(?:from |import\()'(?<to>\.[^']+)'/g)].map(({ groups }) => join(dirname(from), groups!.to!)))
  t.strictSame(used.filter(to => roomOf(to) !== 'cli' && !entries.has(to)), [])
})

t.test('only one file of lib knows its process', async t => {
  t.strictSame(files.filter(file => /\bprocess\.env\b|= process$/m.test(read(`lib/${file}`))), ['cli/index.ts'])
})

t.test('imports run one way, those of types too', async t => {
  t.strictSame(circles(), [])

  /** Each file that is reached from itself, with the way. */
  function circles (): string[] {
    const found = new Set<string>()
    for (const file of files) visit(file, [])
    return [...found]

    function visit (file: string, way: string[]): void {
      const at = way.indexOf(file)
      if (at !== -1) {
        const circle = way.slice(at)
        // one circle has as many beginnings as files; the first of the alphabet stands for it
        if (circle.toSorted()[0] === file) found.add([...circle, file].join(' → '))
        return
      }
      for (const { from, to } of imports) if (from === file) visit(to, [...way, file])
    }
  }
})
