import { execFile } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import rateLimit from '@fastify/rate-limit'
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import devices from '../lib/index.ts'
import { root } from './root.ts'
import { connect, open, refusal } from './support.ts'

const page = readFileSync(join(root, 'docs/recipes.md'), 'utf8')

/** The snippets of JavaScript under a heading. */
function snippets (heading: string): string[] {
  const section = page.slice(page.indexOf(`\n## ${heading}\n`) + 1)
  const end = section.indexOf('\n## ')
  return [...section.slice(0, end === -1 ? undefined : end).matchAll(/^```js\n([\s\S]*?)^```$/gm)].map(([, code]) => code!)
}

/** Ends the program of a snippet where it would listen, and prints what the plugin has added. */
const ended = (code: string) => code.replace(/^( *)await app\.listen.*$/m, `$1await app.ready()
$1console.log(app.devices.size, app.hasRoute({ method: 'POST', url: '/broadcast' }))
$1await app.close()`)

/** Runs one of the files in an application that has the package, as it was built, among its modules. Returns what it prints. */
async function run (t: Test, main: string, files: Record<string, string>): Promise<string> {
  const folder = mkdtempSync(join(root, 'dist/recipe-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  mkdirSync(join(folder, 'node_modules'))
  symlinkSync(root, join(folder, 'node_modules/fastify-devices'))
  for (const [name, code] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, name)), { recursive: true })
    writeFileSync(join(folder, name), code)
  }
  const { NODE_OPTIONS: _, ...env } = process.env
  const { stdout } = await promisify(execFile)(process.execPath, [join(folder, main)], { env, cwd: folder })
  return stdout.trim()
}

t.test('a CommonJS program requires the plugin and a mailbox', async t => {
  const [program] = snippets('CommonJS')
  t.equal(await run(t, 'app.cjs', { 'app.cjs': ended(program!) }), '0 true')
})

t.test('a CommonJS program can require every entry point, and its exports are those of import', async t => {
  const { exports } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { exports: Record<string, string | object> }
  const names = Object.keys(exports).filter(name => typeof exports[name] === 'object').map(name => name.replace('.', 'fastify-devices'))
  const program = `
    const names = ${JSON.stringify(names)}
    Promise.all(names.map(async name => {
      const [imported, required] = [await import(name), require(name)]
      return Object.keys(imported).length > 0 && Object.keys(imported).every(key => required[key] === imported[key])
    })).then(same => console.log(same.every(Boolean), same.length))`
  t.equal(await run(t, 'all.cjs', { 'all.cjs': program }), `true ${names.length}`)
})

t.test('autoload registers a file of ES modules that registers the plugin', async t => {
  const [plugin, program] = snippets('@fastify/autoload')
  t.equal(await run(t, 'app.js', { 'package.json': '{"type":"module"}', 'app.js': ended(program!), 'plugins/devices.js': plugin! }), '0 true')
})

t.test('autoload registers a file of CommonJS that registers the plugin', async t => {
  const [, , plugin] = snippets('@fastify/autoload')
  const program = `
    const autoload = require('@fastify/autoload')
    const app = require('fastify')()
    app.register(autoload, { dir: require('node:path').join(__dirname, 'plugins') })
    app.ready().then(() => { console.log(app.devices.size, app.hasRoute({ method: 'POST', url: '/broadcast' })); return app.close() })`
  t.equal(await run(t, 'app.js', { 'package.json': '{"type":"commonjs"}', 'app.js': program, 'plugins/devices.js': plugin! }), '0 true')
})

t.test('an option that autoload gives to every file is refused, and named', async t => {
  const program = `
    import { join } from 'node:path'
    import autoload from '@fastify/autoload'
    import Fastify from 'fastify'
    const app = Fastify()
    app.register(autoload, { dir: join(import.meta.dirname, 'plugins'), options: { stage: 'test' } })
    await app.ready().then(() => console.log('ready'), error => console.log(error.message))`
  const files = { 'package.json': '{"type":"module"}', 'app.js': program, 'plugins/devices.js': `export { default } from 'fastify-devices'\n` }
  t.match(await run(t, 'app.js', files), /has no option "stage"/)
})

/** An application with a limit of two requests for each address. */
async function limited (t: Test, options: object, prepare: (app: FastifyInstance) => void = () => {}): Promise<FastifyInstance & { url: string }> {
  const app = Fastify() as FastifyInstance
  await app.register(rateLimit, { max: 2, timeWindow: 60_000, ...options })
  prepare(app)
  await app.register(devices, { authenticate: false, guard: ({ headers }) => headers.authorization === 'good' })
  return await open(t, app)
}

const statuses = async (app: FastifyInstance, authorization: string, count: number) => {
  const answers: number[] = []
  for (let asked = 0; asked < count; asked++) answers.push((await app.inject({ url: '/devices', headers: { authorization } })).statusCode)
  return answers
}

t.test('rate-limit counts the upgrades of devices unless it is told not to', async t => {
  const app = await limited(t, {})
  for (const id of ['a', 'b']) await connect(app.url, id)
  t.match(await refusal(app.url, '/ws?deviceId=c'), { status: 429 })
  const other = await limited(t, { allowList: ({ routeOptions: { url } }: { routeOptions: { url: string } }) => url === '/ws' })
  for (const id of ['a', 'b', 'c', 'd']) await connect(other.url, id)
  t.strictSame(await statuses(other, 'good', 3), [200, 200, 429])
})

t.test('rate-limit counts requests that guard has refused only as a hook of the application', async t => {
  const app = await limited(t, {})
  t.strictSame(await statuses(app, 'bad', 3), [403, 403, 403])
  t.strictSame(await statuses(app, 'good', 3), [200, 200, 429])
  const early = await limited(t, { global: false }, app => app.addHook('onRequest', app.rateLimit()))
  t.strictSame(await statuses(early, 'bad', 3), [403, 403, 429])
})

t.test('rate-limit counts a request with many lines once', async t => {
  const app = await limited(t, {})
  const headers = { authorization: 'good', 'content-type': 'application/x-ndjson' }
  const payload = '{"to":"d","data":1,"ttl":60}\n'.repeat(10)
  for (const status of [200, 200, 429]) t.equal((await app.inject({ method: 'POST', url: '/messages', headers, payload })).statusCode, status)
})
