import type { FastifyInstance } from 'fastify'
import type { Options } from '../lib/index.ts'
import { connect, request, until, type TestDevice } from './support.ts'

type Node = FastifyInstance & { url: string }
type Told = Awaited<ReturnType<typeof request>>
/** Does some work while a letter larger than `ROOM` does not fit. */
type WhileFull = <T>(work: () => Promise<T>) => Promise<T>

const alwaysFull: WhileFull = work => work()

/** What the nodes need for the outcomes; their mailbox has room for `ROOM` bytes, or the test makes it full. */
export const settings: Options = {
  guard: ({ headers }) => headers.authorization === 'good',
  maxLetters: 2, maxCalls: 2, maxTopics: 2, maxBuffered: 200_000, closeTimeout: 200
}
export const ROOM = 60_000

/** An answer as it is on every node: without what is another each time. */
export interface Outcome {
  title: string
  answer: string
  body: unknown
  retryAfter: string | null
}

const EACH_TIME = new Set(['id', 'generation', 'since', 'node', 'at', 'expiresAt', 'queuedAt', 'endedAt', 'attempts'])
const json = { 'content-type': 'application/json' }
const refuse = (code: number) => () => { throw { code, message: 'No', data: [1] } } // eslint-disable-line

/** One row of the table: a device of its own, and a caller. */
class Scene {
  readonly id: string
  readonly asked: Node
  readonly whileFull: WhileFull
  readonly #home: Node
  #device: TestDevice | undefined

  constructor (id: string, asked: Node, home: Node, whileFull: WhileFull) {
    this.id = id
    this.asked = asked
    this.whileFull = whileFull
    this.#home = home
  }

  /** Connects the device. */
  async device (): Promise<TestDevice> {
    this.#device = await connect(this.#home.url, this.id)
    return this.#device
      .handle('message', ({ data }) => {
        if (data === 'refuse') refuse(7)()
        return data === 'mute' ? undefined : {}
      })
      .handle('echo', params => params)
      .handle('refuse', refuse(7))
      .handle('unknown', refuse(-32601))
      .handle('fast', refuse(-32005))
  }

  /** The path goes on from the device. */
  async ask (method: string, path: string, body?: unknown, headers: Record<string, string> = {}): Promise<Told> {
    return await this.at(method, `/devices/${this.id}${path}`, body, headers)
  }

  async at (method: string, path: string, body?: unknown, headers: Record<string, string> = {}): Promise<Told> {
    return await request(this.asked, method, path, body, { authorization: 'good', ...headers })
  }

  async send (query = '', body: unknown = { a: 1 }, headers?: Record<string, string>): Promise<Told> {
    return await this.ask('POST', `/messages${query}`, body, headers)
  }

  async call (method: string, query = '', body: unknown = { a: 1 }): Promise<Told> {
    return await this.ask('POST', `/calls/${method}${query}`, body)
  }

  async waiting (): Promise<number> {
    return (await this.ask('GET', '')).body.waiting
  }

  end (): void {
    this.#device?.socket.terminate()
  }
}

/** The same after the device has come. */
const here = (work: (scene: Scene, device: TestDevice) => Promise<Told>) => async (scene: Scene) => await work(scene, await scene.device())

const rows: Array<[title: string, answer: string, work: (scene: Scene) => Promise<Told>]> = [
  ['a message', '200 sent', here(scene => scene.send())],
  ['one that is acknowledged', '200 delivered', here(scene => scene.send('?confirm=true'))],
  ['a letter', '202 queued', scene => scene.send('?ttl=60')],
  ['a letter that is acknowledged', '200 delivered', here(scene => scene.send('?ttl=60&confirm=true'))],
  ['a letter that is acknowledged too late', '202 queued', here(scene => scene.send('?ttl=60&confirm=true&timeout=0.05', 'mute'))],
  ['a call', '200', here(scene => scene.call('echo'))],
  ['many messages', '200', here(scene => scene.at('POST', '/messages', [
    `{"to":"${scene.id}","data":1}`, `{"to":"${scene.id}-away","data":1}`, `{"to":"${scene.id}-away","data":1,"ttl":60}`,
    `{"to":"${scene.id}","data":"refuse","confirm":true}`, '{'
  ].join('\n'), { 'content-type': 'application/x-ndjson' }))],
  ['a broadcast to those who listen', '200', here(async scene => {
    await scene.ask('PUT', '/topics/a%2Fb')
    return await scene.at('POST', '/broadcast?topic=a/b', 1)
  })],
  ['a broadcast nobody listens to', '200', scene => scene.at('POST', `/broadcast?topic=${scene.id}`, 1)],
  ['a device', '200', here(scene => scene.ask('GET', ''))],
  ['a device is disconnected', '204', here(scene => scene.ask('DELETE', ''))],
  ['a topic is joined', '200', here(scene => scene.ask('PUT', '/topics/a%2Fb'))],
  ['a topic is left', '200', here(async scene => {
    await scene.ask('PUT', '/topics/a%2Fb')
    return await scene.ask('DELETE', '/topics/a%2Fb')
  })],
  ['the letters that wait', '200', async scene => {
    await scene.send('?ttl=60')
    return await scene.ask('GET', '/messages')
  }],
  ['a receipt', '200 queued', async scene => await scene.ask('GET', `/messages/${(await scene.send('?ttl=60')).body.id}`)],
  ['a letter is cancelled', '200 cancelled', async scene => await scene.ask('DELETE', `/messages/${(await scene.send('?ttl=60')).body.id}`)],
  ['all are', '200', async scene => {
    await scene.send('?ttl=60')
    return await scene.ask('DELETE', '/messages')
  }],

  ['the device refuses a call', '422 DEVICE_REFUSED', here(scene => scene.call('refuse'))],
  ['the device refuses a message', '422 DEVICE_REFUSED', here(scene => scene.send('?confirm=true', 'refuse'))],
  ['the device refuses a letter', '422 DEVICE_REFUSED', here(scene => scene.send('?ttl=60&confirm=true', 'refuse'))],

  ['a message to nobody', '404 DEVICE_OFFLINE', scene => scene.send()],
  ['one to be acknowledged, to nobody', '404 DEVICE_OFFLINE', scene => scene.send('?confirm=true')],
  ['a call to nobody', '404 DEVICE_OFFLINE', scene => scene.call('echo')],
  ['nobody is looked at', '404 DEVICE_OFFLINE', scene => scene.ask('GET', '')],
  ['no device to disconnect', '404 DEVICE_OFFLINE', scene => scene.ask('DELETE', '')],
  ['nobody joins', '404 DEVICE_OFFLINE', scene => scene.ask('PUT', '/topics/a')],
  ['nobody leaves', '404 DEVICE_OFFLINE', scene => scene.ask('DELETE', '/topics/a')],
  ['a letter nobody knows', '404 MESSAGE_UNKNOWN', scene => scene.ask('GET', '/messages/unheard-of')],

  ['an id that is none', '400 FST_ERR_VALIDATION', here(scene => scene.at('POST', `/devices/${scene.id}%20/messages`, 1))],
  ['JSON that is none', '400 FST_ERR_CTP_INVALID_JSON_BODY', here(scene => scene.send('', '{', json))],
  ['no body', '400 MESSAGE_MALFORMED', here(scene => scene.ask('POST', '/messages'))],
  ['a query that is wrong', '400 FST_ERR_VALIDATION', here(scene => scene.send('?ttl=-1'))],
  ['params that are none', '400 PARAMS_INVALID', here(scene => scene.call('echo', '', 1))],
  ['a method that is ours', '400 PARAMS_INVALID', here(scene => scene.call('welcome'))],
  ['a topic that is none', '400 TOPIC_INVALID', here(scene => scene.ask('PUT', '/topics/%24x'))],
  ['a topic that is none, to all', '400 TOPIC_INVALID', scene => scene.at('POST', '/broadcast?topic=a/%23', 1)],
  ['too large', '413 FST_ERR_CTP_BODY_TOO_LARGE', here(scene => scene.send('', Buffer.alloc(65_537)))],
  ['another content type', '415 TYPE_UNSUPPORTED', here(scene => scene.send('', 'a=1', { 'content-type': 'application/x-www-form-urlencoded' }))],
  ['no credentials', '401 UNAUTHENTICATED', here(async scene => await request(scene.asked, 'POST', `/devices/${scene.id}/messages`, 1))],
  ['no rights', '403 FORBIDDEN', here(scene => scene.send('', 1, { authorization: 'bad' }))],

  ...['', '?ttl=60'].map((query): typeof rows[number] => [`the same key, another message${query}`, '409 IDEMPOTENCY_MISMATCH', here(async scene => {
    await scene.send(query, 1, { 'idempotency-key': 'k' })
    return await scene.send(query, 2, { 'idempotency-key': 'k' })
  })]),
  ['a letter is cancelled twice', '409 MESSAGE_SETTLED', async scene => {
    const { body: { id } } = await scene.send('?ttl=60')
    await scene.ask('DELETE', `/messages/${id}`)
    return await scene.ask('DELETE', `/messages/${id}`)
  }],
  ['a letter is cancelled while its sender waits', '409 MESSAGE_SETTLED', here(async scene => {
    const sent = scene.send('?ttl=60&confirm=true', 'mute')
    await until(async () => await scene.waiting() === 1)
    await scene.ask('DELETE', '/messages')
    return await sent
  })],

  ['too many letters', '429 MAILBOX_FULL', async scene => {
    for (let sent = 0; sent < 2; sent++) await scene.send('?ttl=60')
    return await scene.send('?ttl=60')
  }],
  ['too many calls in flight', '429 CALLS_EXCEEDED', here(async (scene, device) => {
    const held = [scene.call('hold'), scene.call('hold')]
    await until(() => device.seen.filter(({ method }) => method === 'hold').length === 2)
    const third = await scene.call('hold')
    scene.end()
    await Promise.all(held)
    return third
  })],
  ['a device that is too busy', '429 RATE_EXCEEDED', here(scene => scene.call('fast'))],
  ['a device that does not read', '429 DEVICE_CONGESTED', here(async (scene, device) => {
    device.socket.pause()
    const sent = Array.from({ length: 300 }, () => scene.send('', 'x'.repeat(60_000)))
    const refused = await Promise.any(sent.map(async told => {
      const one = await told
      return one.status === 429 ? one : await new Promise<never>(() => {})
    }))
    scene.end()
    await Promise.all(sent)
    return refused
  })],
  ['too many topics', '429 TOPICS_EXCEEDED', here(async scene => {
    for (const topic of ['a', 'b']) await scene.ask('PUT', `/topics/${topic}`)
    return await scene.ask('PUT', '/topics/c')
  })],

  ['no such method', '501 METHOD_UNKNOWN', here(scene => scene.call('unknown'))],
  ['the device leaves in a call', '502 DEVICE_DROPPED', here(async (scene, device) => {
    const held = scene.call('hold')
    await device.next(({ method }) => method === 'hold')
    scene.end()
    return await held
  })],
  ['an answer that is none', '502 DEVICE_ANSWER_INVALID', here(async (scene, device) => {
    const odd = scene.call('odd')
    const { id } = await device.next(({ method }) => method === 'odd')
    device.send({ jsonrpc: '2.0', id, result: 1, error: {} })
    return await odd
  })],
  ['no answer in time', '504 DEVICE_TIMEOUT', here(scene => scene.call('hold', '?timeout=0.1'))],
  ['no acknowledgement in time', '504 DEVICE_TIMEOUT', here(scene => scene.send('?confirm=true&timeout=0.1', 'mute'))],
  ['no acknowledgement while it waited', '504 DEVICE_TIMEOUT', here(scene => scene.send('?confirm=true&ttl=0.1&timeout=60', 'mute'))],
  ['no room', '507 STORE_FULL', scene => scene.whileFull(() => scene.send('?ttl=60', Buffer.alloc(65_000)))]
]

/** Walks the table: a caller asks one node, the devices come to the same or another. */
export async function outcomes (name: string, asked: Node, home: Node, whileFull = alwaysFull): Promise<Outcome[]> {
  const found: Outcome[] = []
  for (const [at, [title, , work]] of rows.entries()) {
    const scene = new Scene(`${name}-${at}`, asked, home, whileFull)
    const told = await work(scene)
    scene.end()
    found.push({ title, ...outcomeOf(told, scene.id) })
  }
  return found
}

/** What must come of it. */
export const expected = rows.map(([title, answer]) => ({ title, answer }))

/** What a node answers that leaves, while a call to a device of its own holds it up. */
export async function leaving (asked: Node, home: Node): Promise<string[]> {
  const busy = await connect(asked.url, 'busy')
  const scene = new Scene('late', asked, home, alwaysFull)
  await scene.device()
  const held = scene.at('POST', '/devices/busy/calls/hold')
  await busy.next(({ method }) => method === 'hold')
  const closing = asked.close()
  await until(async () => (await scene.call('echo')).status === 503)
  const told = [await scene.send(), await scene.send('?ttl=60'), await scene.call('echo'), await scene.at('POST', '/broadcast', 1), await scene.at('GET', '/devices')]
  busy.socket.terminate()
  scene.end()
  await Promise.all([held, closing])
  return told.map(one => `${outcomeOf(one, scene.id).answer} ${one.headers.get('retry-after')}`)
}

function outcomeOf ({ status, body, headers }: Told, id: string): Omit<Outcome, 'title'> {
  const word = body.code ?? (typeof body.status === 'string' ? body.status : undefined)
  const lines = body instanceof Uint8Array ? body.toString().split('\n').filter(line => line !== '').map(line => JSON.parse(line)) : body
  const steady = JSON.stringify(lines, (key, value) => EACH_TIME.has(key) ? typeof value : value).replaceAll(id, 'id')
  return { answer: word === undefined ? String(status) : `${status} ${word}`, body: JSON.parse(steady), retryAfter: headers.get('retry-after') }
}
