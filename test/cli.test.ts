import { readFileSync } from 'node:fs'
import { connect as dial, createServer, type AddressInfo, type Socket } from 'node:net'
import { once } from 'node:events'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import { stripVTControlCharacters } from 'node:util'
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import { WebSocketServer } from 'ws'
import { usageOf } from '../lib/cli/command.ts'
import { greeting } from '../lib/cli/commands/serve.ts'
import { EventReader } from '../lib/cli/event-reader.ts'
import { readEvents } from '../lib/cli/event-stream.ts'
import { exitCodes, exitOf } from '../lib/cli/exit-codes.ts'
import { Flags } from '../lib/cli/flags.ts'
import { gatewayAddress, GatewayClient } from '../lib/cli/gateway-client.ts'
import { interruptible } from '../lib/cli/interruptible.ts'
import { nearest } from '../lib/cli/nearest.ts'
import { json, printable } from '../lib/cli/printable.ts'
import { commands } from '../lib/cli/program.ts'
import { openEngines } from '../lib/cli/serve/engines.ts'
import { createGateway } from '../lib/cli/serve/gateway.ts'
import { addMetrics } from '../lib/cli/serve/metrics.ts'
import { displayWidth, Table } from '../lib/cli/table.ts'
import type { Terminal } from '../lib/cli/terminal.ts'
import devices, { reasons } from '../lib/index.ts'
import { redisServer } from './campaigns/redis.ts'
import { all, until } from './fakes.ts'
import { answerJson, cli, impostor, inTerminal, launch, program, start } from './cli-support.ts'
import { withProgram } from './programs.ts'
import { root } from './root.ts'
import { connect, listen, open, request } from './support.ts'

const page = readFileSync(join(root, 'docs/cli.md'), 'utf8')

/** The cells of the table under a heading, without code marks. */
function table (heading: string): string[][] {
  const [, rows] = new RegExp(`\n## ${heading}\n[\\s\\S]*?\n\\|[-|]+\\|\n((?:\\|.*\n)*)`).exec(page)!
  return rows!.trimEnd().split('\n').map(row => row.split(/(?<!\\)\|/).slice(1, -1).map(cell => cell.trim()))
}

const code = (text: string) => text === '' ? '' : `\`${text}\``
/** A text with its escape characters made visible. */
const visible = (text: string) => text.replaceAll('\u001b', 'ESC')

// the documentation

t.test('docs/cli.md lists every command, as its help does', async t => {
  t.strictSame(table('Commands'), commands.map(command => [code(usageOf(command).replaceAll('|', '\\|').replace(/^fastify-devices | \[flags\]$/g, '')), command.summary]))
})

t.test('docs/cli.md lists every flag of every command', async t => {
  const rows = commands.flatMap(({ name, flags }) => Object.entries(flags).map(([flag, { value, about, env }]) => ({ name, flag: code(`--${flag}${value ? ` ${value}` : ''}`), env: code(env ?? ''), about })))
  const isSame = (a: typeof rows[number]) => (b: typeof a) => a.flag === b.flag && a.env === b.env && a.about === b.about
  const shared = commands.map(({ name }) => name).filter(name => name !== 'serve')
  const distinct = rows.filter((row, at) => rows.findIndex(isSame(row)) === at).map(row => {
    const names = rows.filter(isSame(row)).map(({ name }) => name)
    return [row.flag, names.join() === shared.join() ? 'all but `serve`' : names.map(code).join(' '), row.env, row.about]
  })
  t.strictSame(table('Flags'), distinct.toSorted(([, a], [, b]) => Number(a!.startsWith('all')) - Number(b!.startsWith('all'))))
})

t.test('docs/cli.md lists every exit code, and which codes of the gateway lead to it', async t => {
  t.strictSame(table('Exit codes'), Object.entries(exitCodes).map(([name, { code: number, when, reasons }]) => [String(number), name, when, reasons.map(code).join(' ')]))
})

t.test('every reason of a failure has an exit code of its own', async t => {
  const listed = Object.values(exitCodes).flatMap(({ reasons }): readonly string[] => reasons)
  t.strictSame(listed.toSorted(), Object.values(reasons).map(({ code }) => code).toSorted())
  t.equal(exitOf('FST_ERR_VALIDATION', 400), 'invalid')
  t.equal(exitOf(undefined, 418), 'failed')
})

/** A session with what differs from run to run replaced. */
function steady (text: string): string {
  return text.replace(/\d{4}-\d\d-\d\dT[\d:.]+Z/g, '<time>').replace(/(?<![\w-])[\w-]{8}\d(?![\w-])/g, '<id>').replace(/\d{13}/g, '<ms>').trimEnd()
}

t.test('the session of docs/cli.md goes as it is shown', async t => {
  const [asDevice, ...asCaller] = [...page.matchAll(/^```\n(\$ npx [^]*?)^```$/gm)].map(([, text]) => text!)
  const app = await listen(t, { node: 'n1' })
  const env = { FASTIFY_DEVICES_URL: app.url, NO_COLOR: '1' }
  const device = start(t, ['connect', 'abc123'], { env, isTerminal: true })
  await until(() => device.stdout.includes('connected'))
  const [, ...seen] = asDevice!.trimEnd().split('\n')
  const typed = seen.pop()!
  let last = 0
  for (const [, line, shown] of asCaller.join('').matchAll(/^\$ (.*)\n((?:(?!\$ ).*\n)*)/gm)) {
    if (line === 'echo $?') {
      t.equal(shown, `${last}\n`)
      continue
    }
    const words = [...line!.matchAll(/'([^']*)'|\S+/g)].map(([word, quoted]) => quoted ?? word)
    t.strictSame(words.splice(0, 2), ['npx', 'fastify-devices'])
    const running = start(t, words, { env, isTerminal: true })
    if (words[0] === 'call') {
      await until(() => device.stdout.includes('reboot'))
      device.type(typed)
    }
    last = await running.code
    t.equal(steady(running.stdout + running.stderr), steady(shown!), line!)
  }
  t.equal(device.stdout, `${seen.join('\n')}\n`)
})

// what is printed

t.test('control characters of devices are shown, not sent to the terminal', async t => {
  t.equal(printable('\u001b]0;title\u0007\u009b31m\u202e\n\ud800'), '\\u001b]0;title\\u0007\\u009b31m\\u202e\\u000a\\ud800')
  const value = { text: '\u001b[2J\u007f\u009b\u2028\u{e0041}é名' }
  t.notMatch(json(value), /[\p{Cc}\p{Cf}\p{Zl}]/u)
  t.strictSame(JSON.parse(json(value)), value)
  t.equal(json({ a: new Uint8Array([1, 2]) }), '{"a":{"base64":"AQI="}}')
  t.equal(json({ a: '\u0085' }, 2), '{\n  "a": "\\u0085"\n}')
  t.equal(json(undefined), 'null')
})

t.test('columns are aligned, however wide their characters are', async t => {
  t.equal(displayWidth('名前'), 4)
  t.equal(displayWidth('👩‍💻e\u0301ß'), 4)
  const table = new Table<[string, unknown]>([{ title: 'A', of: ([a]) => a, width: 3 }, { title: 'B', of: ([, b]) => b }])
  t.strictSame(table.lines([['名前', 1], ['x', undefined]]), { head: 'A     B', body: ['名前  1', 'x'] })
  t.strictSame(table.lines([['x', { y: '\u001b' }]]), { head: undefined, body: ['x     {"y":"\\u001b"}'] })
})

t.test('a word that is almost a name leads to that name', async t => {
  t.equal(nearest('tll', ['timeout', 'ttl']), 'ttl')
  t.equal(nearest('conf', ['confirm', 'key']), 'confirm')
  t.equal(nearest('', ['key']), undefined)
  t.equal(nearest('unrelated', ['key']), undefined)
  t.equal(nearest('x', []), undefined)
})

t.test('server-sent events are read whichever way they are cut and their lines end', async t => {
  const stream = ': hello\r\nid: 1\r\nevent: connected\r\ndata: {"a":\r\ndata:1}\r\n\r\nretry: 20\rretry: x\rid: a\0b\rdata\r\rid\n\nevent: lost\n\ndata: é\n\ndata: unfinished'
  const expected = [
    { type: 'connected', data: '{"a":\n1}', id: '1', retry: undefined },
    { type: 'message', data: '', id: '1', retry: 20 },
    { type: 'message', data: 'é', id: '', retry: 20 }
  ]
  const bytes = new TextEncoder().encode(stream)
  for (const size of [1, 2, 3, 1_000]) {
    const chunks = Array.from({ length: Math.ceil(bytes.length / size) }, (_, at) => bytes.subarray(at * size, (at + 1) * size))
    const place = { id: '', retry: undefined }
    t.strictSame(await all(readEvents((async function * () { yield * chunks })(), place)), expected, `${size} bytes`)
    t.strictSame(place, { id: '1', retry: 20 })
  }
  await t.rejects(all(readEvents((async function * () { for (;;) yield new Uint8Array(1_000_000).fill(120) })())), /longer than/)
})

// mistakes of the user

t.test('a wrong command line says what is wrong, and sends nothing', async t => {
  const url = await impostor(t, (_request, response) => { t.fail('a request'); response.end() })
  const mistakes: Array<[words: string[], message: RegExp]> = [
    [['lss'], /no command "lss"; did you mean ls\?\nSee fastify-devices --help/],
    [['frobnicate'], /no command "frobnicate"\n/],
    [['--url', url, 'ls'], /command comes before its flags/],
    [['help', 'nothing'], /no command "nothing"/],
    [['send', 'd', '1', '--tll', '5'], /send has no flag --tll; did you mean --ttl\?\nSee fastify-devices send --help/],
    [['send', 'd', '-5'], /send has no flag -5; an argument that begins with "-" goes after "--"/],
    [['send', 'd', '1', '--ttl', 'soon'], /--ttl is a number of seconds, not "soon"/],
    [['send', 'd', '1', '--ttl', ' '], /--ttl is a number of seconds/],
    [['send', 'd', '1', '--ttl=-1'], /--ttl is a number of seconds/],
    [['send', 'd', '1', '--ttl'], /--ttl <value>' argument missing/],
    [['send', 'd', '1', '--key', ''], /value of --key is empty/],
    [['send', 'd', '1', '--key', 'a\nb'], /A key consists of printable ASCII/],
    [['send', 'd', '1', '--key', '\u20ac'], /A key consists of printable ASCII/],
    [['send'], /send needs ID/],
    [['send', 'd', 'hello', 'world'], /Unexpected argument "world"; quote/],
    [['send', 'd', '{"a":'], /begins like JSON/],
    [['send', '..', '1'], /"\.\." is not an id/],
    [['show', ''], /"" is not an id/],
    [['call', 'd', 'm', '5'], /PARAMS is a JSON object or array/],
    [['call', 'd', 'm', 'text'], /PARAMS is a JSON object or array/],
    [['letters', 'd', 'toString'], /After ID comes show, cancel or purge, not "toString"/],
    [['letters', 'd', 'show'], /letters ID show needs LETTER/],
    [['letters', 'd', 'purge', 'x'], /letters ID purge takes no LETTER/],
    [['ls', '--url', 'nowhere'], /"nowhere" is not a URL/],
    [['ls', '--url', 'ftp://localhost'], /begins with http:\/\/ or https:\/\//],
    [['ls', '--url', 'http://user:secret@localhost'], /must not contain a name or a password/],
    [['ls', '--token', 'a\nb'], /A token consists of visible ASCII/],
    [['connect', 'a b'], /"a b" is not an id: 1 to 128/],
    [['connect', 'd', '--answer', '{'], /value of --answer is not JSON/],
    [['connect', 'd', '--answer', '1', '--echo'], /--answer or --echo, not both/],
    [['connect', 'd', '--path', 'http://['], /"http:\/\/\[" is not a path/],
    [['connect', 'd', '--path', '//localhost/ws'], /"\/\/localhost\/ws" is not a path/],
    [['serve', '--drain-delay', '3000000'], /--drain-delay is a number of seconds up to 2147483, not "3000000"/],
    [['serve', '--drain-delay=-1'], /--drain-delay is a number of seconds/],
    ...['1.2.3.4/33', '1.2.3.4/0', '::1/129', '::/x', ''].map((proxy): [string[], RegExp] => [['serve', '--trust-proxy', `127.0.0.1/8,${proxy}`], /--trust-proxy is a list of addresses, not "/]),
    [['serve', '--port', '70000'], /--port is a port from 0 to 65535, not "70000"/],
    [['serve', '--port', '1.5'], /--port is a port/],
    [['serve', '--token', 'open sesame'], /A token consists of visible ASCII characters, without spaces\n/],
    [['serve', '--log-level', 'loud'], /"loud" is not a level/],
    [['serve', '--data', 'a', '--nats', 'b'], /NATS keeps the letters; leave --data out/],
    [['serve', '--data', 'a', '--redis', 'redis://b'], /Redis keeps the letters; leave --data out/],
    [['serve', '--redis', 'redis://a', '--nats', 'b'], /Redis or NATS, not both: leave out --redis and REDIS_URL, or --nats and NATS_URL/],
    [['serve', '--trust-proxy', '127.0.0.1,proxy.example'], /--trust-proxy is a list of addresses, not "proxy.example"/],
    [['serve', '--config', 'missing.js'], /There is no file ".*missing.js"/]
  ]
  for (const [words, message] of mistakes) {
    const { code, stdout, stderr } = await cli(t, words, { env: { FASTIFY_DEVICES_URL: url } })
    t.match({ code, stdout }, { code: 2, stdout: '' }, words.join(' '))
    t.match(stderr, message, words.join(' '))
  }
  t.match(await cli(t, ['serve'], { env: { PORT: 'x' } }), { code: 2, stderr: /PORT is a port from 0 to 65535, not "x"/ })
  t.match(await cli(t, ['send', 'd', '--url', url], { isTerminal: true }), { code: 2, stderr: /DATA is missing/ })
  t.match(await cli(t, ['send', 'd', '--url', url], { input: new Uint8Array([255, 0]) }), { code: 2, stderr: /The input is not text in UTF-8/ })
  t.strictSame(JSON.parse((await cli(t, ['send', '--json'])).stderr), { error: 'usage', message: 'send needs ID' })
})

t.test('the help explains the program and each command', async t => {
  for (const words of [[], ['--help'], ['-h'], ['help']]) {
    const { code, stdout } = await cli(t, words)
    t.equal(code, 0)
    for (const { name, summary } of commands) t.match(stdout, new RegExp(`^  ${name} .*${summary}$`, 'm'))
  }
  for (const { name, flags } of commands) {
    const { code, stdout } = await cli(t, [name, '--help'])
    t.equal(code, 0)
    for (const flag of Object.keys(flags)) t.match(stdout, new RegExp(`^  --${flag} `, 'm'))
    t.match(stdout, /^Examples:\n {2}# .*\n {2}.*fastify-devices/m)
    t.equal((await cli(t, ['help', name])).stdout, stdout)
  }
  t.equal((await cli(t, ['--version'])).stdout, `${JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).version}\n`)
})

t.test('the examples of the help are command lines without a mistake', async t => {
  const url = await impostor(t, (_request, response) => { answerJson(response, { devices: [], messages: [], id: 'm', status: 'sent' }) })
  for (const { name, examples } of commands) {
    if (name === 'serve' || name === 'tail' || name === 'connect') continue // they do not end; other tests run them
    for (const { line } of examples) {
      const words = [...line.split(/ [|<] /)[0]!.matchAll(/'([^']*)'|\S+/g)].map(([word, quoted]) => quoted ?? word).slice(1)
      t.match(await cli(t, words, { env: { FASTIFY_DEVICES_URL: url }, input: '{}' }), { code: 0, stderr: '' }, line)
    }
  }
})

// against a gateway

t.test('in a pipe every command prints lines of JSON', async t => {
  const app = await listen(t, { node: 'n1' })
  const env = { FASTIFY_DEVICES_URL: `${app.url}/` }
  const device = await connect(app.url, 'abc123')
  device.handle('message', () => ({})).handle('reboot', params => ({ in: params.delay })).handle('nothing', () => null)
  await device.ask('subscribe', { topics: ['news/+'] })
  await connect(app.url, 'other')

  t.match((await cli(t, ['ls'], { env })).records, [{ deviceId: 'abc123', node: 'n1' }, { deviceId: 'other' }])
  t.match((await cli(t, ['ls', '--prefix', 'abc', '--topic', 'news/sport'], { env })).records, { length: 1 })
  t.match((await cli(t, ['show', 'abc123'], { env })).records, [{ deviceId: 'abc123', connected: true, topics: ['news/+'] }])
  t.match((await cli(t, ['send', 'abc123', '{"hello":"world"}'], { env })).records, [{ status: 'sent' }])
  t.strictSame((await device.message()).params.data, { hello: 'world' })
  for (const [words, input, data] of [
    [['hi'], '', 'hi'], [['5'], '', 5], [['5', '--text'], '', '5'], [['-'], '[1]\n', [1]], [[], 'from a file\r\n', 'from a file'], [['--', '-1'], '', -1]
  ] as const) {
    t.match(await cli(t, ['send', 'abc123', '--confirm', '--timeout', '5', ...words], { env, input }), { code: 0, records: [{ status: 'delivered' }] })
    t.strictSame((await device.message()).params.data, data)
  }
  t.match((await cli(t, ['call', 'abc123', 'reboot', '{"delay":5}', '--timeout', '5'], { env })).records, [{ in: 5 }])
  t.match((await cli(t, ['call', 'abc123', 'reboot', '-'], { env, input: '{"delay":6}\n' })).records, [{ in: 6 }])
  t.equal((await cli(t, ['call', 'abc123', 'nothing'], { env })).stdout, 'null\n')
  t.match((await cli(t, ['broadcast', '{"hello":"all"}'], { env })).records, [{ sent: 2, nodes: 1 }])
  t.match((await cli(t, ['broadcast', '--topic', 'news/sport'], { env, input: 'goal' })).records, [{ sent: 1 }])

  const [queued] = (await cli(t, ['send', 'away', '1', '--ttl', '60', '--collapse', 'level', '--key', 'k'], { env })).records
  t.match(queued, { status: 'queued' })
  t.strictSame((await cli(t, ['send', 'away', '1', '--ttl', '60', '--collapse', 'level', '--key', 'k'], { env })).records, [queued])
  t.match((await cli(t, ['letters', 'away'], { env })).records, [{ id: queued.id, collapse: 'level' }])
  t.match((await cli(t, ['letters', 'away', 'show', queued.id], { env })).records, [{ id: queued.id, status: 'queued' }])
  t.match((await cli(t, ['letters', 'away', 'cancel', queued.id], { env })).records, [{ id: queued.id, status: 'cancelled' }])
  t.match((await cli(t, ['letters', 'away', 'purge'], { env })).records, [{ cancelled: 0 }])
})

t.test('every outcome of a request has its exit code', async t => {
  const app = await listen(t, { node: 'n1' })
  const env = { FASTIFY_DEVICES_URL: app.url }
  const device = await connect(app.url, 'abc123')
  device.handle('refuse', () => { throw { code: 42, message: 'Too \u001b[31mhot', data: { celsius: 99 } } }).handle('hang', () => undefined)
  device.handle('leave', () => device.socket.terminate())
  const outcomes: Array<[words: string[], exit: number, stderr: RegExp]> = [
    [['send', 'away', '1'], 5, /The device is not connected \(DEVICE_OFFLINE\)/],
    [['show', 'away'], 5, /DEVICE_OFFLINE/],
    [['call', 'abc123', 'refuse'], 7, /^fastify-devices: Answered with an error \(DEVICE_REFUSED\) {"code":42,"message":"Too \\u001b\[31mhot","data":{"celsius":99}}\n$/],
    [['call', 'abc123', 'hang', '--timeout', '0.01'], 6, /DEVICE_TIMEOUT/],
    [['letters', 'abc123', 'show', 'x'], 10, /MESSAGE_UNKNOWN/],
    [['show', 'a b'], 11, /params\/id must match/],
    [['call', 'abc123', 'leave'], 8, /DEVICE_DROPPED/]
  ]
  for (const [words, exit, stderr] of outcomes) t.match(await cli(t, words, { env }), { code: exit, stdout: '', stderr }, words.join(' '))
  await until(() => !app.devices.has('abc123'))
  t.strictSame(JSON.parse((await cli(t, ['send', 'abc123', '1', '--json'], { env })).stderr), { error: 'offline', message: 'The device is not connected', statusCode: 404, code: 'DEVICE_OFFLINE' })
})

t.test('a key that is used again exits with how its letter ended', async t => {
  let status = ''
  const url = await impostor(t, (_request, response) => { answerJson(response, { id: 'm', status }) })
  for (const [ending, exit] of Object.entries({ delivered: 0, cancelled: 0, replaced: 0, refused: 7, 'dead-lettered': 7, expired: 6, damaged: 1 })) {
    status = ending
    t.equal((await cli(t, ['send', 'd', '1', '--key', 'k', '--url', url])).code, exit, ending)
  }
})

t.test('lists of many pages are printed whole', async t => {
  const url = await impostor(t, ({ url }, response) => {
    const cursor = Number(new URL(url!, 'http://localhost').searchParams.get('cursor') ?? 0)
    const next = cursor < 2 ? { cursor: cursor + 1 } : {}
    answerJson(response, { devices: [{ deviceId: `d${cursor}` }], messages: [{ id: `m${cursor}` }], ...next })
  })
  t.strictSame((await cli(t, ['ls', '--url', url])).records.map(({ deviceId }) => deviceId), ['d0', 'd1', 'd2'])
  t.strictSame((await cli(t, ['letters', 'd', '--url', url])).records.map(({ id }) => id), ['m0', 'm1', 'm2'])
})

t.test('a table stays a table whatever the gateway lists', async t => {
  const url = await impostor(t, (_request, response) => answerJson(response, {
    devices: [
      { deviceId: 'a'.repeat(128), node: 'n1', since: 0 },
      { deviceId: '\u001b[2J\u202e名前', node: '\u0007', since: 'never' },
      { deviceId: 'x', node: 'n\nn' }
    ]
  }))
  const { stdout } = await cli(t, ['ls', '--url', url], { isTerminal: true, env: { NO_COLOR: '1' } })
  const at = 'a'.repeat(128).length + 2
  t.strictSame(stdout.split('\n').map(line => line.slice(line.startsWith('\\u001b') ? at - 2 : at)), ['NODE      SINCE', 'n1        1970-01-01T00:00:00.000Z', '\\u0007', 'n\\u000an', ''])
  t.notMatch(stdout, /[^\n\P{Cc}]/u)
})

t.test('what is not a gateway is said to be none', async t => {
  let answer: [status: number, type: string, body: string] = [200, 'text/html', '<p>']
  const url = await impostor(t, (_request, response) => {
    const [status, type, body] = answer
    response.writeHead(status, { 'content-type': type, location: '/elsewhere' }).end(body)
  })
  t.match(await cli(t, ['call', 'd', 'm', '--url', url]), { code: 0, records: [{ base64: 'PHA+' }] }, 'bytes are a result')
  for (const [status, type, body, exit] of [[404, 'text/html', '', 1], [404, 'application/json', '{"message":"Route not found"}', 1], [301, 'text/html', '', 1], [401, 'text/html', 'Who?', 4], [502, 'application/json', '{', 3]] as const) {
    answer = [status, type, body]
    t.match(await cli(t, ['ls', '--url', url]), { code: exit, stderr: new RegExp(`Unexpected answer ${status}`) })
  }
  answer = [200, 'application/json', '{']
  t.match(await cli(t, ['ls', '--url', url]), { code: 3, stderr: /cannot be reached/ })
  const broken = await impostor(t, (_request, response) => { response.writeHead(200, { 'content-length': 10 }).write('1', () => response.destroy()) })
  t.match(await cli(t, ['ls', '--url', broken]), { code: 3 })
})

t.test('without a gateway, or with a wrong token, every command says so', async t => {
  const gone = createServer().listen(0, '127.0.0.1')
  await once(gone, 'listening')
  const { port } = gone.address() as { port: number }
  await new Promise(resolve => gone.close(resolve))
  const host = Fastify()
  await host.register(devices, { authenticate: ({ token }) => token === 'sesame/=', guard: ({ headers }) => headers.authorization === 'Bearer sesame/=' })
  const app = await open(t, host)
  const lines = [['ls'], ['show', 'd'], ['send', 'd', '1'], ['call', 'd', 'm'], ['broadcast', '1'], ['letters', 'd'], ['tail'], ['connect', 'd']]
  t.strictSame(lines.map(([name]) => name), commands.map(({ name }) => name).filter(name => name !== 'serve'))
  t.match(await cli(t, ['ls', '--url', 'http://127.0.0.1:1']), { code: 3, stderr: /cannot be reached: bad port/ })
  t.equal(gatewayAddress({ flags: new Flags({}, {}, {}) }).url.href, 'http://127.0.0.1:3000/')
  for (const words of lines) {
    t.match(await cli(t, [...words, '--url', `http://127.0.0.1:${port}`]), { code: 3, stderr: /ECONNREFUSED/ }, words.join(' '))
    t.match(await cli(t, [...words, '--url', app.url, '--token', 'barley']), { code: 4, stderr: /UNAUTHENTICATED|FORBIDDEN|HTTP 401/ }, words.join(' '))
  }
  const env = { FASTIFY_DEVICES_URL: app.url, FASTIFY_DEVICES_TOKEN: 'sesame/=' }
  t.equal((await cli(t, ['ls'], { env })).code, 0)
  t.equal((await cli(t, ['ls', '--token', 'barley'], { env })).code, 4, 'a flag overrides the environment')
  const device = start(t, ['connect', 'd'], { env })
  await device.record(({ state }) => state === 'connected')
  t.match(await cli(t, ['connect', 'd', '--path', '/elsewhere'], { env }), { code: 1, stderr: /HTTP 404/ })
})

// tail

t.test('tail follows the events, and continues after the last one', async t => {
  const requests: Array<{ url: string | undefined, lastId: unknown }> = []
  const bodies = [
    'retry: 1\n\n: hello\n\nid: 1\nevent: connected\ndata: {"id":"1","type":"connected","at":0,"node":"n1","deviceId":"d"}\n\n',
    'id: 3\nevent: gap\ndata: {"id":"3","type":"gap"}\n\n',
    'data: {}\n\n',
    'event: odd\ndata: no JSON\n\ndata: [1]\n\n'
  ]
  const url = await impostor(t, ({ url, headers }, response) => {
    requests.push({ url, lastId: headers['last-event-id'] })
    if (requests.length === 2) { // a broken connection is tried again
      response.destroy()
      return
    }
    response.writeHead(200, { 'content-type': 'text/event-stream' }).write(bodies.shift()!)
    if (bodies.length > 0) response.end()
  })
  const tail = start(t, ['tail', '--types', 'connected,gap', '--url', url])
  await tail.record(({ data }) => data === '[1]')
  t.strictSame(tail.records, [{ type: 'connected', id: '1', at: 0, node: 'n1', deviceId: 'd' }, { type: 'gap', id: '3' }, { type: 'message' }, { type: 'odd', data: 'no JSON' }, { type: 'message', data: '[1]' }])
  t.strictSame(requests, [undefined, '1', '1', '3', '3'].map(lastId => ({ url: '/events?types=connected%2Cgap', lastId })))
  t.match(tail.stderr, /reconnecting/)
  tail.interrupt('SIGINT')
  t.equal(await tail.code, 130)
  t.equal(tail.stderr.match(/reconnecting/g)!.length, 4)
})

/** A proxy in front of a gateway that can cut its connections. */
async function cuttable (t: Test, gateway: string): Promise<{ url: string, cut (): Promise<void>, mend (): void }> {
  let sockets: Socket[] = []
  let isCut = false
  const proxy = createServer(socket => {
    if (isCut) {
      socket.destroy()
      return
    }
    const upstream = dial(Number(new URL(gateway).port), '127.0.0.1')
    socket.pipe(upstream).pipe(socket)
    for (const [one, other] of [[socket, upstream], [upstream, socket]] as const) one.on('error', () => {}).on('close', () => other.destroy())
    sockets.push(socket, upstream)
  })
  const cut = async () => {
    isCut = true
    for (const socket of sockets) socket.destroy()
    sockets = []
  }
  t.teardown(async () => {
    await cut()
    proxy.close()
  })
  await once(proxy.listen(0, '127.0.0.1'), 'listening')
  return { url: `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`, cut, mend: () => { isCut = false } }
}

t.test('tail misses nothing of a gateway that it cannot reach for a while, even if it has not seen an event yet', async t => {
  const app = await listen(t)
  const proxy = await cuttable(t, app.url)
  let readers = 0
  app.server.on('request', ({ url }) => { if (url?.startsWith('/events')) readers++ })
  const tail = start(t, ['tail', '--url', proxy.url])
  await until(() => readers === 1)
  await connect(app.url, 'seen-by-the-feed') // it is open now
  await tail.record(({ deviceId }) => deviceId === 'seen-by-the-feed')
  const idle = start(t, ['tail', '--types', 'cancelled', '--url', proxy.url])
  await until(() => readers === 2)
  await connect(app.url, 'd')
  await tail.record(({ deviceId }) => deviceId === 'd')
  await proxy.cut()
  await until(() => tail.stderr.includes('reconnecting') && idle.stderr.includes('reconnecting'))
  await app.devices.send('away', 1, { ttl: 60_000 })
  await app.devices.purge('away')
  proxy.mend()
  for (const reader of [tail, idle]) {
    t.match(await reader.record(({ type }) => type === 'cancelled'), { deviceId: 'away' })
    t.notOk(reader.records.some(({ type }) => type === 'gap'))
  }
})

t.test('tail says that events may be missing once the gateway was restarted', async t => {
  const first = await listen(t)
  const tail = start(t, ['tail', '--url', first.url])
  await until(async () => {
    await (await connect(first.url, 'a')).close()
    return tail.records.length > 0
  })
  await first.close()
  await until(() => tail.stderr.includes('reconnecting'))
  const second = Fastify()
  t.teardown(() => second.close())
  await second.register(devices)
  await second.listen({ port: Number(new URL(first.url).port) })
  t.match(await tail.record(({ type }) => type === 'gap'), { data: { reason: 'unknown-id' } })
})

t.test('tail waits for a place if there are too many readers, and ends at an event that is too long', async t => {
  let count = 0
  const url = await impostor(t, (_request, response) => {
    if (++count === 2) return answerJson(response, { statusCode: 503, code: 'READERS_EXCEEDED', message: 'Too many' }, 503)
    response.writeHead(200, { 'content-type': 'text/event-stream' }).end(count === 1 ? 'retry: 1\n\n' : `data: ${'x'.repeat(16_800_000)}\n`)
  })
  t.match(await cli(t, ['tail', '--url', url]), { code: 1, stderr: /An event is longer than/ })
  t.equal(count, 3)
})

t.test('tail gives up a connection over which nothing arrives any more', async t => {
  const url = await impostor(t, (_request, response) => response.writeHead(200, { 'content-type': 'text/event-stream' }).write('id: 1\ndata: {}\n\n'))
  const terminal = { signal: new AbortController().signal } as Terminal
  const reader = new EventReader(new GatewayClient({ flags: new Flags({}, { url }, {}), terminal }), undefined, 500)
  t.match(await all(reader.events()), [{ id: '1' }])
  t.equal(reader.delay, 2_000)
})

t.test('tail ends when the gateway no longer allows it', async t => {
  let count = 0
  const url = await impostor(t, (_request, response) => {
    if (++count > 1) answerJson(response, { statusCode: 403, code: 'FORBIDDEN', message: 'Not allowed' }, 403)
    else response.writeHead(200, { 'content-type': 'text/event-stream' }).end('retry: 1\ndata: {}\n\n')
  })
  t.match(await cli(t, ['tail', '--url', url]), { code: 4, stderr: /FORBIDDEN/ })
})

const brokenPipe = Object.assign(new Error('write EPIPE'), { code: 'EPIPE' })

t.test('a reader that closes the pipe ends the command without a word', async t => {
  const url = await impostor(t, (_request, response) => response.writeHead(200, { 'content-type': 'text/event-stream' }).write('data: {}\n\n'))
  t.equal(await start(t, ['tail', '--url', url], { broken: stream => stream === 'stdout' ? brokenPipe : undefined }).code, 0)
  t.equal(await start(t, ['tail', '--url', url], { broken: () => new Error('No space') }).code, 1)

  let send!: (text: string) => void
  const slow = await impostor(t, (_request, response) => {
    send = text => response.write(text)
    response.writeHead(200, { 'content-type': 'text/event-stream' }).write('data: {}\n\n')
  })
  const reader = launch(t, process.execPath, [program, 'tail', '--url', slow])
  await until(() => reader.printed !== '')
  const { stdout } = reader.child
  stdout!.destroy()
  await once(stdout!, 'close')
  send('data: {}\n\n')
  t.equal(await reader.exited, 0)
  t.equal(reader.printed, '{"type":"message"}\n')
})

t.test('a command goes on if nobody reads its notes', async t => {
  const url = await impostor(t, (_request, response) => response.writeHead(200, { 'content-type': 'text/event-stream' }).end('retry: 1\ndata: {}\n\n'))
  const tail = start(t, ['tail', '--url', url], { broken: stream => stream === 'stderr' ? brokenPipe : undefined })
  await until(() => tail.records.length > 2)
  tail.interrupt('SIGINT')
  t.equal(await tail.code, 130)
})

t.test('a signal ends a command that waits for its input, or for the reader of its output', async t => {
  t.equal(await interruptible(AbortSignal.abort('SIGTERM'), new Promise(() => {})).catch(reason => reason), 'SIGTERM', 'also one that came before')
  const sending = start(t, ['send', 'd', '-'])
  await until(() => sending.isReading)
  sending.interrupt('SIGINT')
  t.equal(await sending.code, 130)

  const url = await impostor(t, (_request, response) => response.writeHead(200, { 'content-type': 'text/event-stream' }).write('data: {}\n\n'))
  const tail = start(t, ['tail', '--url', url], { isStuck: true })
  await until(() => tail.stdout !== '')
  tail.interrupt('SIGTERM')
  t.equal(await tail.code, 143)

  const waiting = launch(t, process.execPath, [program, 'send', 'd', '-'])
  const reading = launch(t, process.execPath, [program, 'serve', '--config', join(t.testdir({ 'hangs.js': 'console.log("loading")\nawait new Promise(resolve => setTimeout(resolve, 1e8))' }), 'hangs.js')])
  await until(() => reading.printed.includes('loading'))
  for (const { child } of [waiting, reading]) child.kill('SIGTERM')
  t.equal(await reading.exited, 143)
  await waiting.exited
})

// connect

t.test('connect answers what call asks, with the lines that are typed', async t => {
  const app = await listen(t)
  const env = { FASTIFY_DEVICES_URL: app.url }
  app.devices.on('message', data => { if (data === 'bad') throw new Error('unexpected') })
  const device = start(t, ['connect', 'abc123', '--topic', 'news/+'], { env, isTerminal: true })
  await until(() => device.stdout.includes('connected'))
  t.match(device.stderr, /A line that you type answers/)
  const answered = async (method: string, line: string) => {
    const call = cli(t, ['call', 'abc123', method, '{"delay":5}'], { env })
    await until(() => stripVTControlCharacters(device.stdout).includes(`call       ${method.padEnd(12)}  {"delay":5}`))
    device.type('')
    device.type(line)
    return await call
  }
  t.match(await answered('reboot', '{"in":5}'), { code: 0, records: [{ in: 5 }] })
  t.match(await answered('name', 'kiosk'), { code: 0, records: ['kiosk'] })
  t.match(await answered('heat', '!Too hot'), { code: 7, stderr: /Too hot/ })
  const call = app.devices.call('abc123', 'later')
  await until(() => device.stdout.includes('later'))
  device.type('{"in":')
  await until(() => device.stderr.includes('Not answered: The message begins like JSON, but is not valid JSON'))
  device.type('{}')
  t.strictSame(await call, {})

  const message = new Promise(resolve => app.devices.on('message', resolve))
  device.type('{"celsius":21}')
  t.strictSame(await message, { celsius: 21 })
  device.type('bad')
  await until(() => device.stderr.includes('Not taken: '))
  app.devices.get('abc123')!.send('\u001b[2J')
  await until(() => device.stdout.includes('\\u001b[2J'))
  await until(() => app.devices.get('abc123')!.topics.size > 0)
  await app.devices.broadcast(new Uint8Array([1]), { topic: 'news/sport' })
  await until(() => stripVTControlCharacters(device.stdout).includes('message    news/sport    {"base64":"AQ=="}'))

  const open = t.rejects(app.devices.call('abc123', 'open'), { code: 'DEVICE_DROPPED' })
  await until(() => device.stdout.includes('open'))
  await app.devices.disconnect('abc123')
  await open
  t.match({ code: await device.code, stderr: device.stderr }, { code: 8, stderr: /The gateway ended the connection: 4511/ })
})

t.test('connect answers by itself with --answer and --echo, and takes letters', async t => {
  const app = await listen(t)
  const env = { FASTIFY_DEVICES_URL: app.url }
  const fixed = start(t, ['connect', 'fixed', '--answer', '{"ok":true}'], { env, input: '' })
  const echo = start(t, ['connect', 'echo', '--echo'], { env })
  for (const device of [fixed, echo]) await device.record(({ state }) => state === 'connected')
  t.match((await cli(t, ['call', 'fixed', 'any', '[1]'], { env })).records, [{ ok: true }])
  t.match((await cli(t, ['call', 'echo', 'any', '[1]'], { env })).records, [[1]])
  t.match((await cli(t, ['call', 'echo', 'any'], { env })).records, [{}])
  t.match((await cli(t, ['send', 'echo', '"a letter"', '--ttl', '60', '--confirm', '--timeout', '5'], { env })).records, [{ status: 'delivered' }])
  t.match(await echo.record(({ data }) => data === 'a letter'), { type: 'message' })

  const again = start(t, ['connect', 'echo', '--echo'], { env })
  t.equal(await echo.code, 8, 'a newer connection replaces it')
  await again.record(({ state }) => state === 'connected')
  again.interrupt('SIGINT')
  t.equal(await again.code, 130)

  const wrong = start(t, ['connect', 'wrong', '--echo', '--topic', 'a/#/b'], { env })
  await until(() => wrong.stderr.includes('a/#/b'))
  await until(() => !app.devices.has('echo'))
})

t.test('connect prints notices, and waits for a gateway that comes back', async t => {
  const server = new WebSocketServer({ port: 0, host: '127.0.0.1' })
  t.teardown(() => server.close())
  await once(server, 'listening')
  let connections = 0
  server.on('connection', socket => {
    for (const notice of ['{"jsonrpc":"2.0","method":"welcome","params":{"heartbeat":30000}}', '{"jsonrpc":"2.0","method":"refresh","params":{"now":true}}']) socket.send(notice)
    if (++connections === 1) socket.close(1012)
    else socket.close(1012, 'retry=60000')
  })
  const device = start(t, ['connect', 'd', '--url', `http://127.0.0.1:${(server.address() as AddressInfo).port}`])
  t.strictSame(await device.record(({ type }) => type === 'notice'), { type: 'notice', method: 'refresh', params: { now: true } })
  await device.record(({ retryIn }) => retryIn === 60_000)
  t.match(device.records.filter(({ type }) => type === 'status'), [{ state: 'connected' }, { state: 'waiting', code: 1012 }, { state: 'connected' }, { state: 'waiting' }])
  device.interrupt('SIGTERM')
  t.equal(await device.code, 143)

  server.removeAllListeners('connection').on('connection', socket => socket.close(1011))
  t.match(await cli(t, ['connect', 'd', '--url', `http://127.0.0.1:${(server.address() as AddressInfo).port}`]), { code: 3, stderr: /cannot be reached: the connection ended with 1011/ })
})

t.test('connect sends the lines of a file as messages, and leaves', async t => {
  const app = await listen(t)
  const env = { FASTIFY_DEVICES_URL: app.url }
  t.match(await cli(t, ['connect', 'd'], { env, input: '1\n' }), { code: 7, stderr: /Not taken: No such method/ }, 'nobody listens')
  const messages: unknown[] = []
  app.devices.on('message', data => { messages.push(data) })
  t.match(await cli(t, ['connect', 'd'], { env, input: '{"celsius":21}\n\nhello\n' }), { code: 0, stderr: '' })
  t.strictSame(messages, [{ celsius: 21 }, 'hello'])
  t.match(await cli(t, ['connect', 'd'], { env, input: '{\n' }), { code: 2, stderr: /Not taken/ })
})

t.test('connect ends when its output is closed, and does not acknowledge what it could not print', async t => {
  const app = await listen(t)
  let isBroken = false
  const device = start(t, ['connect', 'd', '--echo'], { env: { FASTIFY_DEVICES_URL: app.url }, broken: stream => isBroken && stream === 'stdout' ? brokenPipe : undefined })
  await device.record(({ state }) => state === 'connected')
  isBroken = true
  await app.devices.send('d', 'a letter', { ttl: 60_000 })
  t.equal(await device.code, 0)
  t.equal(device.stderr, '')
  await until(() => !app.devices.has('d'))
  t.match(await app.devices.letters('d'), { receipts: [{ status: 'queued' }] })
})

// serve

t.test('serve runs a gateway until it is interrupted', async t => {
  const gateway = start(t, ['serve', '--port', '0', '--data', t.testdir()])
  const { url } = await gateway.record(({ url }) => url)
  t.match(await request({ url }, 'GET', '/healthz'), { status: 200, body: { status: 'ok' } })
  t.match(await request({ url }, 'GET', '/readyz'), { status: 200, body: { status: 'ok' } })
  const longest = 'a'.repeat(128)
  t.match(await cli(t, ['send', longest, '1', '--ttl', '60', '--url', url]), { code: 0, records: [{ status: 'queued' }] })
  t.match(await cli(t, ['serve', '--port', new URL(url).port]), { code: 1, stderr: /Port \d+ of 127.0.0.1 is in use; choose another with --port/ })
  t.match(await cli(t, ['serve', '--port', '0', '--host', '203.0.113.1']), { code: 1, stderr: /Cannot listen on port 0 of 203.0.113.1: EADDRNOTAVAIL/ })
  gateway.interrupt('SIGINT')
  t.equal(await gateway.code, 0)
})

t.test('with a token, the gateway admits devices and callers that have it; probes need none', async t => {
  const gateway = start(t, ['serve'], { env: { PORT: '0', TOKEN: 'open-sesame', LOG_LEVEL: 'silent' } })
  const { url } = await gateway.record(({ url }) => url)
  t.equal((await request({ url }, 'GET', '/readyz')).status, 200)
  for (const [token, exit] of [['open-sesame', 0], ['open-barley', 4], ['other', 4]] as const) t.equal((await cli(t, ['ls', '--url', url, '--token', token])).code, exit)
  t.equal((await cli(t, ['ls', '--url', url])).code, 4)
  const device = start(t, ['connect', 'd', '--echo', '--topic', 'a', '--url', url, '--token', 'open-sesame'])
  await device.record(({ state }) => state === 'connected')
  await until(async () => (await cli(t, ['ls', '--topic', 'a', '--url', url, '--token', 'open-sesame'])).records.length === 1)
})

t.test('on a terminal the gateway says what to do next', async t => {
  for (const [flags, expected] of [
    [[], ['in memory', 'this machine only']],
    [['--data', t.testdir(), '--token', 'x'], [t.testdirName, 'with the token']],
    [['--redis', 'redis://:open-sesame@127.0.0.1:9'], ['in Redis']],
    [['--nats', '127.0.0.1:9'], ['in NATS']]
  ] as const) {
    const gateway = start(t, ['serve', '--port', '0', '--log-level', 'silent', ...flags], { isTerminal: true })
    await until(() => gateway.stdout.includes('See them'))
    for (const text of expected) t.match(gateway.stdout, text)
    t.notMatch(gateway.stdout, 'sesame')
    t.match(stripVTControlCharacters(gateway.stdout), /Listening on (http:\S+)\n[^]*npx fastify-devices connect abc123 --url \1\n/)
    gateway.interrupt('SIGTERM')
    t.equal(await gateway.code, 0)
  }
  t.notMatch(greeting({ style: (_name, text) => text }, 'http://127.0.0.1:3000', { hasConsole: false }), '--url')
})

t.test('a config adds options, handlers and routes', async t => {
  const folder = t.testdir({
    'gateway.js': `
      export const options = { path: '/socket', mailbox: undefined, guard: undefined, authenticate: undefined }
      export default async app => {
        app.devices.handle('time', () => ({ now: 1 }))
        app.get('/hello', async () => 'hello')
      }`,
    'mailbox.js': `
      const unused = async () => 0
      export const options = {
        mailbox: { shared: false, put: unused, letters: async function * () {}, waiting: unused, settle: unused, receipt: unused, addAttempt: unused, sweep: async () => [], health: async () => ({ ok: false, reason: 'disk full' }) }
      }`,
    'options-only.js': 'export const options = { rate: 100 }',
    'other.js': 'export const option = {}',
    'object.js': 'export default {}',
    'list.js': 'export const options = 5',
    'array.js': 'export const options = []',
    'pipe.js': 'throw Object.assign(new Error("of a socket"), { code: "EPIPE" })',
    'broken.js': 'throw new Error("of the config")',
    'unknown.js': 'export const options = { pth: "/x" }',
    'text.js': 'throw "a text"',
    'hook.js': 'export default async app => { app.addHook("onReady", async () => { throw new Error("of the hook") }) }',
    'late.js': 'export default async () => { throw new Error("of the plugin") }'
  })
  const serve = (name: string, ...flags: string[]) => ['serve', '--port', '0', '--config', join(folder, name), ...flags]
  const gateway = start(t, serve('gateway.js'))
  const { url } = await gateway.record(({ url }) => url)
  t.equal(String((await request({ url }, 'GET', '/hello')).body), 'hello')
  const device = await connect(url, 'd', { path: '/socket?deviceId=d' })
  t.strictSame((await device.ask('time')).result, { now: 1 })

  const safe = start(t, serve('gateway.js', '--data', join(folder, 'kept'), '--token', 'sesame'))
  const kept = await safe.record(({ url }) => url)
  t.match(await cli(t, ['ls', '--url', kept.url]), { code: 4 }, 'an option that is undefined does not remove the token')
  t.match(await cli(t, ['send', 'd', '1', '--ttl', '60', '--url', kept.url, '--token', 'sesame']), { code: 0 })
  safe.interrupt('SIGTERM')
  await safe.code
  const restarted = start(t, serve('gateway.js', '--data', join(folder, 'kept')))
  t.match((await cli(t, ['letters', 'd', '--url', (await restarted.record(({ url }) => url)).url])).records, [{ status: 'queued' }], 'nor the mailbox')

  const full = start(t, serve('mailbox.js', '--data', '/not/used'))
  const at = await full.record(({ url }) => url)
  t.match(await request(at, 'GET', '/readyz'), { status: 503, body: { status: 'unavailable', reasons: ['mailbox: disk full'] } })
  t.match(await request(at, 'GET', '/healthz'), { status: 200 })

  await start(t, serve('options-only.js')).record(({ url }) => url)
  for (const [name, code, message] of [
    ['other.js', 2, /exports "option"/], ['object.js', 2, /not a Fastify plugin/], ['list.js', 2, /"options" of the config is not an object/], ['array.js', 2, /"options" of the config is not an object/], ['pipe.js', 1, /of a socket/],
    ['broken.js', 1, /Error: of the config\n +at /], ['text.js', 1, /^fastify-devices: a text\n$/], ['unknown.js', 1, /pth/], ['hook.js', 1, /of the hook/], ['late.js', 1, /of the plugin/]
  ] as const) {
    t.match(await cli(t, serve(name, '--data', join(folder, 'data'))), { code, stdout: '', stderr: message }, name)
  }
  t.match(await cli(t, serve('unknown.js')), { code: 1 })
  t.match(await cli(t, serve('unknown.js', '--nats', '127.0.0.1:9')), { code: 1 })
  // none of them has kept the folder open
  await start(t, serve('options-only.js', '--data', join(folder, 'data'))).record(({ url }) => url)
})

t.test('the config of docs/cli.md answers devices and adds a route', async t => {
  const [, config] = /```js\n([^]*?)```/.exec(page)!
  const folder = t.testdir({ 'gateway.js': config! })
  const { url } = await start(t, ['serve', '--port', '0', '--config', join(folder, 'gateway.js')]).record(({ url }) => url)
  t.match((await (await connect(url, 'd')).ask('time')).result, { now: Number })
  t.equal(String((await request({ url }, 'GET', '/hello')).body), 'hello')
})

t.test('readyz says that the gateway is leaving, while healthz says that it is alive', async t => {
  const gateway = start(t, ['serve', '--port', '0'])
  const { url } = await gateway.record(({ url }) => url)
  const device = await connect(url, 'd')
  device.handle('work', () => undefined)
  const working = cli(t, ['call', 'd', 'work', '--url', url])
  const call = await device.next(({ method }) => method === 'work')
  gateway.interrupt('SIGTERM')
  await until(async () => (await request({ url }, 'GET', '/readyz')).status === 503)
  t.match(await request({ url }, 'GET', '/readyz'), { status: 503, body: { status: 'unavailable', reasons: ['draining'] } })
  t.match(await request({ url }, 'GET', '/healthz'), { status: 200 })
  device.send({ jsonrpc: '2.0', id: call.id, result: {} })
  t.match(await working, { code: 0 })
  t.equal(await gateway.code, 0)
})

t.test('with --drain-delay the gateway serves on after SIGTERM, while readyz says that it is leaving; a second signal ends it', async t => {
  const gateway = launch(t, process.execPath, [program, 'serve', '--port', '0', '--drain-delay', '3600'])
  await until(() => gateway.printed.includes('}'))
  const { url } = JSON.parse(gateway.printed)
  gateway.child.kill('SIGTERM')
  await until(async () => (await request({ url }, 'GET', '/readyz')).status === 503)
  t.match(await request({ url }, 'GET', '/readyz'), { body: { reasons: ['draining'] } })
  await connect(url, 'd')
  t.match(await request({ url }, 'POST', '/devices/d/messages', 1), { status: 200 })
  const exited = once(gateway.child, 'exit')
  gateway.child.kill('SIGINT')
  t.strictSame(await exited, [null, 'SIGINT'])
})

t.test('with --trust-proxy the address of a device is the one that the proxy forwards', async t => {
  for (const [proxies, address] of [['10.0.0.0/8, 127.0.0.1', '203.0.113.7'], ['10.0.0.1', '127.0.0.1']] as const) {
    const { url } = await start(t, ['serve', '--port', '0', '--trust-proxy', proxies], { env: { TOKEN: 'open-sesame' } }).record(({ url }) => url)
    const headers = { authorization: 'Bearer open-sesame' }
    await connect(url, 'd', { headers: { ...headers, 'x-forwarded-for': '203.0.113.7' } })
    t.match(await request({ url }, 'GET', '/devices/d', undefined, headers), { body: { address } })
  }
})

t.test('an address of Redis that is none is refused and not shown, because it may contain a password', async t => {
  for (const [address, env] of [['10.0.0.1:6379'], ['http://:open-sesame@10.0.0.1'], ['redis://:open/sesame@10.0.0.1'], ['open-sesame', { REDIS_URL: 'open-sesame' }]] as Array<[string, Record<string, string>?]>) {
    const { code, stdout, stderr } = await cli(t, ['serve', '--port', '0', ...(env ? [] : ['--redis', address])], env && { env })
    t.match({ code, stdout, stderr }, { code: 2, stdout: '', stderr: /^fastify-devices: The address of Redis is redis:\/\/HOST:PORT/ }, address)
    t.notMatch(stderr, 'sesame')
  }
})

withProgram(t, 'redis-server', 'gateways that have the same REDIS_URL are nodes of one cluster, whose letters are in Redis', async (t, path) => {
  const server = await redisServer(t, path, ['--requirepass', 'open-sesame'])
  const env = { REDIS_URL: server.url.replace('//', '//:open-sesame@'), DATA: '/not/used', PORT: '0' }
  const gateways = [start(t, ['serve'], { env }), start(t, ['serve'], { env })] as const
  const [near, far] = await Promise.all(gateways.map(gateway => gateway.record(({ url }) => url))) as [{ url: string }, { url: string }]
  for (const at of [near, far]) await until(async () => (await request(at, 'GET', '/readyz')).status === 200)
  const device = start(t, ['connect', 'd', '--echo', '--url', near.url])
  await device.record(({ state }) => state === 'connected')
  t.match(await cli(t, ['call', 'd', 'reboot', '{"delay":5}', '--url', far.url]), { code: 0, records: [{ delay: 5 }] })
  t.match(await cli(t, ['send', 'away', '1', '--ttl', '60', '--url', near.url]), { code: 0, records: [{ status: 'queued' }] })
  for (const gateway of gateways) {
    gateway.interrupt('SIGTERM')
    t.equal(await gateway.code, 0)
  }
  const later = await start(t, ['serve'], { env }).record(({ url }) => url)
  await until(async () => (await request(later, 'GET', '/readyz')).status === 200)
  t.match((await cli(t, ['letters', 'away', '--url', later.url])).records, [{ status: 'queued' }])
})

withProgram(t, 'redis-server', 'a gateway starts before Redis does, and becomes ready once Redis admits it; its log has no password', async (t, path) => {
  const server = await redisServer(t, path, ['--requirepass', 'open-sesame'])
  await server.stop()
  const at = (password: string) => server.url.replace('//', `//:${password}@`)
  const log: string[] = []
  const gateway = async (url: string) => {
    const stream = new PassThrough().on('data', line => log.push(String(line)))
    const app = await createGateway({ redis: url, signal: new AbortController().signal, log: { level: 'trace', stream } })
    t.teardown(() => app.close())
    return async () => { const { statusCode, body } = await app.inject('/readyz'); return [statusCode, body] }
  }
  const readiness = await gateway(at('open-sesame'))
  t.match(await readiness(), [503, /"backplane: Redis unreachable"/])
  await server.start()
  await until(async () => (await readiness())[0] === 200)

  const refused = await gateway(at('open-barley'))
  await until(() => log.some(line => line.includes('WRONGPASS')))
  t.match(await refused(), [503, /"backplane: Redis unreachable"/])
  t.notMatch(log.join(''), /sesame|barley/)
})

t.test('without its optional packages, serve says what to install', async t => {
  const missing = async () => { throw Object.assign(new Error('Cannot find package'), { code: 'ERR_MODULE_NOT_FOUND' }) }
  const load = { disk: missing, redis: missing, nats: missing }
  await t.rejects(openEngines({ data: 'x' }, load), { message: '--data needs packages that are not installed: npm install classic-level', exit: 'usage' })
  await t.rejects(openEngines({ redis: 'x' }, load), { message: '--redis needs packages that are not installed: npm install ioredis', exit: 'usage' })
  await t.rejects(openEngines({ nats: 'x' }, load), { message: /npm install @nats-io\/transport-node @nats-io\/jetstream/ })
  const broken = async () => { throw new Error('of the package') }
  await t.rejects(openEngines({ data: 'x' }, { ...load, disk: broken }), { message: 'of the package' })
})

t.test('a second gateway on one folder says so, without a stack', async t => {
  const folder = t.testdir()
  await start(t, ['serve', '--port', '0', '--data', folder]).record(({ url }) => url)
  const { code, stderr } = await cli(t, ['serve', '--port', '0', '--data', folder])
  t.equal(code, 1)
  t.match(stderr, /^fastify-devices: The folder ".*" is in use by another process\n$/)
})

t.test('a gateway serves metrics of its devices and of its process, if prom-client is installed', async t => {
  const app = Fastify()
  await app.register(devices)
  await addMetrics(app)
  const { statusCode, body } = await app.inject('/metrics')
  t.equal(statusCode, 200)
  t.match(body, /^devices_admissions_total 0$/m)
  t.match(body, /^process_cpu_seconds_total /m)
  await app.close()

  const bare = Fastify()
  await bare.register(devices)
  await addMetrics(bare, async () => { throw Object.assign(new Error('Cannot find package'), { code: 'ERR_MODULE_NOT_FOUND' }) })
  t.equal((await bare.inject('/metrics')).statusCode, 404)
  await t.rejects(addMetrics(bare, async () => { throw new Error('of the package') }), { message: 'of the package' })
  await bare.close()
})

// the program

t.test('the program ends with its exit code, and with all that it has printed', async t => {
  const url = await impostor(t, (_request, response) => answerJson(response, { devices: Array.from({ length: 20_000 }, (_, at) => ({ deviceId: `device-${at}` })) }))
  const ls = launch(t, process.execPath, [program, 'ls', '--url', url])
  t.equal(await ls.exited, 0)
  t.equal(ls.printed.trimEnd().split('\n').length, 20_000)
  t.equal(await launch(t, process.execPath, [program, 'ls', '--prefx']).exited, 2)

  const gateway = launch(t, process.execPath, [program, 'serve'])
  await until(() => gateway.printed.includes('}'))
  const device = launch(t, process.execPath, [program, 'connect', 'd', '--url', JSON.parse(gateway.printed).url])
  await until(() => device.printed.includes('"connected"'))
  device.child.kill('SIGINT')
  t.equal(await device.exited, 130)
  gateway.child.kill('SIGTERM')
  t.equal(await gateway.exited, 0)
})

withProgram(t, 'script', 'on a terminal every command shows a table or a sentence', async (t, script) => {
  const gateway = inTerminal(t, script, ['serve'])
  await until(() => gateway.printed.includes('See them'))
  const url = /http:\/\/127\.0\.0\.1:\d+/.exec(gateway.printed)![0]
  const env = { FASTIFY_DEVICES_URL: url }
  const device = inTerminal(t, script, ['connect', 'abc123'], env)
  await until(() => device.printed.includes('connected'))
  t.match(visible(device.printed), /ESC\[1mEVENT {6}WHAT {10}DATAESC\[22m\r\nstatus {5}connected\r\n/)

  const show = async (words: string[], env: Record<string, string>) => {
    const command = inTerminal(t, script, words, env)
    const code = await command.exited
    return { code, text: visible(command.printed.replaceAll('\r', '')) }
  }
  t.match(await show(['ls'], env), { code: 0, text: /^ESC\[1mDEVICE {2}NODE {6}SINCEESC\[22m\nabc123 {2}\S{8} {2}\d{4}-\d\d-\d\dT.*Z\n$/ })
  t.match(await show(['ls'], { ...env, NO_COLOR: '1' }), { text: /^DEVICE/ })
  t.match(await show(['ls'], { ...env, TERM: 'dumb' }), { text: /^DEVICE/ })
  t.match(await show(['ls', '--json'], env), { text: /^{"deviceId":"abc123"/ })
  t.match(await show(['show', 'abc123'], { ...env, NO_COLOR: '1' }), { code: 0, text: /^deviceId {6}abc123\n(?:.*\n)*since {9}\d{4}-.*Z\n/ })
  const gone = inTerminal(t, script, ['connect', 'gone'], env)
  await until(() => gone.printed.includes('connected'))
  gone.child.stdin!.write('\u0003')
  t.equal(await gone.exited, 130)
  await until(async () => (await show(['show', 'gone'], { ...env, NO_COLOR: '1' })).text.includes('lastDisconnect.at      2'))
  t.match(await show(['send', 'abc123', '{"hello":"world"}'], env), { code: 0, text: /^sent {2}\S+\n$/ })
  t.match(await show(['send', 'away', '1'], env), { code: 5, text: /^ESC\[31mfastify-devices:ESC\[39m The device is not connected \(DEVICE_OFFLINE\)\n$/ })
  t.match(await show(['send', 'away', '1', '--ttl', '60'], env), { code: 0, text: /^queued/ })
  t.match(await show(['letters', 'away'], { ...env, NO_COLOR: '1' }), { code: 0, text: /^LETTER +STATUS +AT +EXPIRES +BYTES +COLLAPSE +ERROR\n\S+ +queued/ })
  t.match(await show(['letters', 'away', 'purge'], env), { code: 0, text: /^letters cancelled: 1\n$/ })
  t.match(await show(['broadcast', '{"hello":"all"}'], env), { code: 0, text: /^devices: 1 {2}nodes: 1 {2}id: / })

  const call = show(['call', 'abc123', 'reboot', '{"delay":5}'], env)
  await until(() => device.printed.includes('reboot'))
  device.child.stdin!.write('{"in":5}\n')
  t.match(await call, { code: 0, text: '{\n  "in": 5\n}\n' })

  const events = await impostor(t, (_request, response) => response.writeHead(200, { 'content-type': 'text/event-stream' }).write('event: connected\ndata: {"type":"connected","at":0,"node":"n1","deviceId":"d","data":{"a":"\\u001b"}}\n\n'))
  const tail = inTerminal(t, script, ['tail', '--url', events])
  await until(() => tail.printed.includes('1970'))
  t.match(tail.printed, /\r\n1970-01-01T00:00:00\.000Z {2}connected {6}d {17}n1 {8}{"a":"\\u001b"}\r\n/)
  tail.child.stdin!.write('\u0003') // Ctrl-C
  t.equal(await tail.exited, 130)
  device.child.stdin!.write('\u0003')
  t.equal(await device.exited, 130)
  gateway.child.stdin!.write('\u0003')
  t.equal(await gateway.exited, 0)
})
