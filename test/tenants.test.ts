import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import devices, { localBackplane, memoryMailbox, type Authorize, type Options } from '../lib/index.ts'
import { overEngines } from './engines.ts'
import { connect, open, request, until, type TestDevice } from './support.ts'

type Node = FastifyInstance & { url: string }
type Answer = Awaited<ReturnType<typeof request>>

const authorize: Authorize = ({ tenant }: { tenant: string }, { action, deviceId, topic, prefix }) => {
  const owns = (name: string | undefined, separator: string) => name?.startsWith(tenant + separator) === true
  if (action === 'list') return owns(prefix, ':')
  if (action === 'broadcast') return owns(topic, '/')
  if (action === 'join' || action === 'leave') return owns(deviceId, ':') && owns(topic, '/')
  return owns(deviceId, ':')
}

const options: Options = { guard: ({ headers }) => ({ tenant: headers.authorization }), authorize }

/** What belongs to a tenant: a device that is connected, and a letter for one that is away. */
interface Property {
  tenant: string
  device: TestDevice
  letter: string
}

/** How a caller reaches what the owner has. */
type Ask = (method: string, path: string, body?: unknown, headers?: Record<string, string>) => Promise<Answer>

interface Row {
  /** The status of the owner. */
  own: number
  ask: (ask: Ask, owner: Property) => Promise<Answer>
}

const message = { secret: 1 }
const ndjson = { 'content-type': 'application/x-ndjson' }

/** Each route, as the plugin registers it; `|` and words are about a further use of it. */
const rows: Record<string, Row> = {
  'GET /devices': { own: 200, ask: (ask, { tenant }) => ask('GET', `/devices?prefix=${tenant}:`) },
  'GET /devices | those of a topic': { own: 200, ask: (ask, { tenant }) => ask('GET', `/devices?prefix=${tenant}:&topic=${tenant}/doors`) },
  'HEAD /devices': { own: 200, ask: (ask, { tenant }) => ask('HEAD', `/devices?prefix=${tenant}:`) },
  'GET /devices/:id': { own: 200, ask: (ask, { tenant }) => ask('GET', `/devices/${tenant}:here`) },
  'GET /devices/:id | one that is away': { own: 200, ask: (ask, { tenant }) => ask('GET', `/devices/${tenant}:away`) },
  'GET /devices/:id | one that does not exist': { own: 404, ask: (ask, { tenant }) => ask('GET', `/devices/${tenant}:none`) },
  'HEAD /devices/:id': { own: 200, ask: (ask, { tenant }) => ask('HEAD', `/devices/${tenant}:here`) },
  'POST /devices/:id/messages': { own: 200, ask: (ask, { tenant }) => ask('POST', `/devices/${tenant}:here/messages`, message) },
  'POST /devices/:id/messages | a letter': { own: 202, ask: (ask, { tenant }) => ask('POST', `/devices/${tenant}:away/messages?ttl=60`, message) },
  'POST /devices/:id/messages | with a key of another': { own: 202, ask: (ask, { tenant }) => ask('POST', `/devices/${tenant}:away/messages?ttl=60`, { of: tenant }, { 'idempotency-key': 'same' }) },
  'GET /devices/:id/messages': { own: 200, ask: (ask, { tenant }) => ask('GET', `/devices/${tenant}:away/messages`) },
  'HEAD /devices/:id/messages': { own: 200, ask: (ask, { tenant }) => ask('HEAD', `/devices/${tenant}:away/messages`) },
  'GET /devices/:id/messages/:messageId': { own: 200, ask: (ask, { tenant, letter }) => ask('GET', `/devices/${tenant}:away/messages/${letter}`) },
  'HEAD /devices/:id/messages/:messageId': { own: 200, ask: (ask, { tenant, letter }) => ask('HEAD', `/devices/${tenant}:away/messages/${letter}`) },
  'POST /devices/:id/calls/:method': { own: 200, ask: (ask, { tenant }) => ask('POST', `/devices/${tenant}:here/calls/open`, message) },
  'PUT /devices/:id/topics/*': { own: 200, ask: (ask, { tenant }) => ask('PUT', `/devices/${tenant}:here/topics/${tenant}%2Fdoors`) },
  'DELETE /devices/:id/topics/*': { own: 200, ask: (ask, { tenant }) => ask('DELETE', `/devices/${tenant}:here/topics/${tenant}%2Fdoors`) },
  'POST /broadcast': { own: 200, ask: (ask, { tenant }) => ask('POST', `/broadcast?topic=${tenant}/doors`, message) },
  'POST /messages': { own: 200, ask: async (ask, { tenant }) => lineOf(await ask('POST', '/messages', `{"to":"${tenant}:here","data":{"secret":1}}`, ndjson)) },
  'POST /messages | a letter': { own: 200, ask: async (ask, { tenant }) => lineOf(await ask('POST', '/messages', `{"to":"${tenant}:away","data":1,"ttl":60}`, ndjson)) },
  'DELETE /devices/:id/messages/:messageId': { own: 200, ask: (ask, { tenant, letter }) => ask('DELETE', `/devices/${tenant}:away/messages/${letter}`) },
  'DELETE /devices/:id/messages': { own: 200, ask: (ask, { tenant }) => ask('DELETE', `/devices/${tenant}:away/messages`) },
  'GET /webhooks': { own: 403, ask: ask => ask('GET', '/webhooks') },
  'HEAD /webhooks': { own: 403, ask: ask => ask('HEAD', '/webhooks') },
  'DELETE /devices/:id': { own: 204, ask: (ask, { tenant }) => ask('DELETE', `/devices/${tenant}:here`) }
}

/** The outcome of the only line, as if it were that of a request. */
function lineOf ({ status, body, headers }: Answer): Answer {
  const line = JSON.parse(String(body))
  return { status: line.statusCode ?? status, body: line, headers }
}

/** What callers ask for that belongs to nobody, or to all. */
const everyone: Array<[title: string, ask: (ask: Ask, own: Property, other: Property) => Promise<Answer>]> = [
  ['all devices', ask => ask('GET', '/devices')],
  ['the devices of a tenant whose name begins alike', (ask, { tenant }) => ask('GET', `/devices?prefix=${tenant.slice(0, -1)}`)],
  ['the devices of the topic of another', (ask, _own, { tenant }) => ask('GET', `/devices?topic=${tenant}/doors`)],
  ['the events of all devices', ask => ask('GET', '/events')],
  ['a broadcast to all', ask => ask('POST', '/broadcast', message)],
  ['an own device listens to another', (ask, { tenant }, other) => ask('PUT', `/devices/${tenant}:here/topics/${other.tenant}%2Fdoors`)],
  ['an own device listens to all', (ask, { tenant }) => ask('PUT', `/devices/${tenant}:here/topics/%23`)],
  ['a foreign device listens to an own topic', (ask, { tenant }, other) => ask('PUT', `/devices/${other.tenant}:here/topics/${tenant}%2Fdoors`)],
  ['another topic in the query', (ask, { tenant }, other) => ask('PUT', `/devices/${tenant}:here/topics/${other.tenant}%2Fdoors?topic=${tenant}/doors`)],
  ['a prefix in the query', (ask, { tenant }, other) => ask('GET', `/devices/${other.tenant}:here?prefix=${tenant}:`)]
]

async function property (home: Node, tenant: string): Promise<Property> {
  const device = await connect(home.url, `${tenant}:here`)
  device.handle('open', () => ({ opened: true })).handle('message', () => ({}))
  await home.devices.join(`${tenant}:here`, `${tenant}/doors`)
  const { id: letter } = await home.devices.send(`${tenant}:away`, 1, { ttl: 60_000 })
  return { tenant, device, letter }
}

/** What an owner can see of its own property. */
async function stateOf (home: Node, { tenant, device }: Property): Promise<unknown> {
  const { inFlight, ...details } = await home.devices.describe(`${tenant}:here`) as Record<string, unknown>
  return [details, (await home.devices.letters(`${tenant}:away`)).receipts, device.seen.map(({ method }) => method).filter(method => method !== 'ping')]
}

const routesOf = new WeakMap<Node, Set<string>>()

async function serve (t: Parameters<typeof open>[0], shared: Options): Promise<Node> {
  const app = Fastify()
  const routes = new Set<string>()
  app.addHook('onRoute', ({ method, url }) => { for (const one of [method].flat()) routes.add(`${one} ${url}`) })
  await app.register(devices, { authenticate: false, authorizeTopic: () => true, ...options, ...shared })
  const node = await open(t, app)
  // where devices connect, what says nothing of any device, and what says something of all
  for (const route of routes) if (/ \/(ws\b|asyncapi\.json$|events$)/.test(route)) routes.delete(route)
  routesOf.set(node, routes)
  return node
}

const askAs = (tenant: string, node: Node): Ask => (method, path, body, headers) => method === 'HEAD'
  ? head(node, path, tenant)
  : request(node, method, path, body, { authorization: tenant, ...headers })

async function head (node: Node, url: string, authorization: string): Promise<Answer> {
  const { statusCode } = await node.inject({ method: 'HEAD', url, headers: { authorization } })
  return { status: statusCode, body: undefined, headers: new Headers() }
}

/** Tenants ask one node; their devices are connected to the same or another. */
async function keepsTenantsApart (t: Test, asked: Node, home: Node): Promise<void> {
  t.strictSame(new Set(Object.keys(rows).map(title => title.split(' | ')[0])), routesOf.get(asked), 'each route has a row')

  const [acme, globex] = [await property(home, 'acme'), await property(home, 'globex')]
  for (const [own, other] of [[acme, globex], [globex, acme]] as const) {
    const ask = askAs(own.tenant, asked)
    const before = await stateOf(home, other)
    for (const [title, row] of Object.entries(rows)) {
      const refused = await row.ask(ask, other)
      t.equal(refused.status, 403, `${own.tenant} to ${other.tenant}: ${title}`)
      if (!title.startsWith('HEAD')) t.match(refused.body, { statusCode: 403, code: 'FORBIDDEN', message: 'Not allowed' })
    }
    for (const [title, of] of everyone) t.equal((await of(ask, own, other)).status, 403, `${own.tenant}: ${title}`)
    for (const method of ['GET', 'DELETE']) {
      t.match(await ask(method, `/devices/${own.tenant}:away/messages/${other.letter}`), { status: 404, body: { code: 'MESSAGE_UNKNOWN' } }, 'a letter is known only with its device')
    }
    t.strictSame(await stateOf(home, other), before, 'nothing has changed')
  }
  for (const own of [acme, globex]) {
    const ask = askAs(own.tenant, asked)
    for (const [title, row] of Object.entries(rows)) t.equal((await row.ask(ask, own)).status, row.own, `${own.tenant} to itself: ${title}`)
    await own.device.closed
    await until(() => !home.devices.has(`${own.tenant}:here`))
  }
}

const SEPARATION = 'a tenant sees, sends to and calls nothing of another over any route, and all of its own'

t.test(`${SEPARATION}, on one node`, async t => {
  const node = await serve(t, {})
  await keepsTenantsApart(t, node, node)
})

t.test(`${SEPARATION}, on two nodes`, async t => {
  const shared = { backplane: localBackplane(), mailbox: memoryMailbox() }
  await keepsTenantsApart(t, await serve(t, shared), await serve(t, shared))
})

overEngines(t, SEPARATION, async (t, engine) => {
  const server = await engine.start(t)
  await keepsTenantsApart(t, await serve(t, await server.join()), await serve(t, await server.join()))
})

t.test('a tenant lists its own devices only, page by page', async t => {
  const node = await serve(t, {})
  for (const id of ['acme:1', 'acme:2', 'acme:3', 'globex:1']) await connect(node.url, id)
  const ask = askAs('acme', node)
  const first = (await ask('GET', '/devices?prefix=acme:&limit=2')).body
  const second = (await ask('GET', `/devices?prefix=acme:&limit=2&cursor=${first.cursor}`)).body
  t.match([first.devices, second.devices], [[{ deviceId: 'acme:1' }, { deviceId: 'acme:2' }], [{ deviceId: 'acme:3' }]])
  t.strictSame([second.devices.length, second.cursor], [1, undefined])
})

t.test('a request of one tenant may have lines for several, and only its own are sent', async t => {
  const node = await serve(t, {})
  const [own, other] = [await connect(node.url, 'acme:1'), await connect(node.url, 'globex:1')]
  const lines = ['acme:1', 'globex:1', 'globex:none', 'acme:none', 'acme:1'].map((to, data) => JSON.stringify({ to, data, key: 'same' })).join('\n')
  const { body } = await askAs('acme', node)('POST', '/messages', lines, ndjson)
  const outcomes = String(body).trim().split('\n').map(line => JSON.parse(line))
  t.strictSame(outcomes.map(({ status, code }) => status ?? code), ['sent', 'FORBIDDEN', 'FORBIDDEN', 'DEVICE_OFFLINE', 'IDEMPOTENCY_MISMATCH'])
  t.equal((await own.message()).params.data, 0)
  t.equal(other.seen.length, 1, 'the welcome')
})

t.test('an idempotency key of one tenant neither blocks nor reveals that of another', async t => {
  const node = await serve(t, {})
  await connect(node.url, 'acme:1')
  await connect(node.url, 'globex:1')
  for (const query of ['', '?ttl=60']) {
    const headers = { 'idempotency-key': `order-17${query}` }
    const acme = await askAs('acme', node)('POST', `/devices/acme:1/messages${query}`, { of: 'acme' }, headers)
    const globex = await askAs('globex', node)('POST', `/devices/globex:1/messages${query}`, { of: 'globex' }, headers)
    t.equal(acme.status, globex.status)
    t.ok(acme.status < 300)
    t.not(acme.body.id, globex.body.id)
    t.match(await askAs('globex', node)('POST', `/devices/acme:1/messages${query}`, { of: 'acme' }, headers), { status: 403, body: { code: 'FORBIDDEN' } })
  }
})
