import Fastify, { type FastifyInstance } from 'fastify'
import t from 'tap'
import { Readiness } from '../lib/gateway/readiness.ts'
import devices, { localBackplane, memoryMailbox, type Health, type Options } from '../lib/index.ts'
import { gate, reasonOf, until } from './fakes.ts'

async function host (options: Options = {}): Promise<FastifyInstance> {
  const app = Fastify() as FastifyInstance
  await app.register(devices, options)
  return app
}

t.test('a node with everything in memory is healthy until it closes', async t => {
  const app = await host()
  await app.devices.ready()
  t.strictSame(await app.devices.health(), { ok: true, mailbox: { ok: true }, backplane: { ok: true }, draining: false })
  await app.close()
  t.strictSame(await app.devices.health(), { ok: false, mailbox: { ok: true }, backplane: { ok: true }, draining: true })
  await t.rejects(app.devices.ready(), { code: 'NODE_DRAINING' })
})

t.test('a node that drains is not healthy', async t => {
  const finishing = gate()
  const app = await host({ mailbox: { ...memoryMailbox(), close: () => finishing.opened } })
  const closing = app.close()
  await until(async () => (await app.devices.health()).draining)
  t.match(await app.devices.health(), { ok: false })
  t.equal(await reasonOf(app.devices.ready()), 'draining')
  finishing.open()
  await closing
})

t.test('`ready` resolves once mailbox and backplane can be used, and rejects when the application closes', async t => {
  const state: Record<'mailbox' | 'backplane', Health> = { mailbox: { ok: false, reason: 'disk full' }, backplane: { ok: false, reason: 'NATS unreachable' } }
  const app = await host({
    mailbox: { ...memoryMailbox(), health: async () => state.mailbox },
    backplane: { ...localBackplane(), health: async () => state.backplane }
  })
  t.strictSame(await app.devices.health(), { ok: false, ...state, draining: false })
  let isReady = false
  const ready = app.devices.ready().then(() => { isReady = true })
  state.mailbox = { ok: true }
  t.match(await app.devices.health(), { ok: false, mailbox: { ok: true }, backplane: { reason: 'NATS unreachable' } })
  t.equal(isReady, false)
  state.backplane = { ok: true }
  await ready

  state.mailbox = { ok: false, reason: 'folder removed' }
  const refused = reasonOf(app.devices.ready())
  await app.close()
  t.equal(await refused, 'draining')
})

t.test('whatever an engine answers, or does not answer, its health is told', async t => {
  const told = async (health: () => unknown) => (await new Readiness({ mailbox: { health: health as () => Promise<Health> }, backplane: {} }).health()).mailbox
  t.strictSame(await told(async () => ({ ok: true, password: 'secret' })), { ok: true })
  t.strictSame(await told(() => ({ ok: false, reason: 'disk full' })), { ok: false, reason: 'disk full' })
  t.strictSame(await told(() => ({ ok: 'yes' })), { ok: false, reason: 'no reason given' })
  t.strictSame(await told(() => ({ ok: false, reason: 5 })), { ok: false, reason: 'no reason given' })
  const failed = { ok: false, reason: 'health check failed' }
  t.strictSame(await told(() => undefined), failed)
  t.strictSame(await told(() => { throw new Error('the password is secret') }), failed)
  t.strictSame(await told(() => Promise.reject(undefined)), failed) // eslint-disable-line
  t.strictSame(await told(() => new Promise(() => {})), { ok: false, reason: 'no answer in time' })
})
