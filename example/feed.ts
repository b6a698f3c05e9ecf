import { Readable } from 'node:stream'
import type { FastifyPluginAsync } from 'fastify'
import type { EventMap } from 'fastify-devices'

/** Maximum number of readers, maximum bytes buffered for one reader, and the interval of keep-alive comments. */
const MAX_READERS = 64
const MAX_BUFFERED_BYTES = 1_048_576
const KEEP_ALIVE_MS = 15_000
/** Maximum characters of a message that the feed shows. */
const MAX_SHOWN_CHARACTERS = 1_000

const endings = ['delivered', 'expired', 'cancelled', 'replaced', 'refused', 'dead-lettered', 'damaged'] as const satisfies ReadonlyArray<keyof EventMap>

/** `GET /events`: events of devices and letters as server-sent events, for callers that may use REST. */
export const feed: FastifyPluginAsync = async app => {
  const readers = new Set<Readable>()

  function write (text: string): void {
    for (const reader of readers) {
      if (reader.readableLength + text.length > MAX_BUFFERED_BYTES) reader.destroy(new Error('The reader of the feed is too slow'))
      else reader.push(text)
    }
  }

  function tell (kind: keyof EventMap, facts: object): void {
    if (readers.size > 0) write(`data: ${JSON.stringify({ kind, at: Date.now(), ...facts })}\n\n`)
  }

  app.devices.on('connected', ({ id, generation, since, address }) => tell('connected', { deviceId: id, generation, since, address }))
  app.devices.on('disconnected', ({ id, generation }, { code, reason }) => tell('disconnected', { deviceId: id, generation, code, reason }))
  app.devices.on('message', (data, { id }) => tell('message', { deviceId: id, data: preview(data) }))
  for (const kind of endings) app.devices.on(kind, ({ deviceId, id }) => tell(kind, { deviceId, id }))

  app.get('/events', {
    exposeHeadRoute: false,
    // A REST request decides whether the caller may use REST. `inject` rejects once the application closes.
    onRequest: async ({ headers, ip }, reply) => {
      const answer = await app.inject({ url: '/devices?limit=1', headers, remoteAddress: ip }).catch(() => undefined)
      if (!answer) return await reply.code(503).send({ statusCode: 503, code: 'NODE_DRAINING', message: 'This node is leaving' })
      if (answer.statusCode !== 200) return await reply.code(answer.statusCode).send(answer.json())
    }
  }, async (_request, reply) => {
    if (readers.size >= MAX_READERS) return await reply.code(503).send({ statusCode: 503, code: 'FEEDS_EXCEEDED', message: 'Too many readers of the feed' })
    const reader = new Readable({ read () {} })
    readers.add(reader)
    reader.once('close', () => readers.delete(reader))
    reader.push(': connected\n\n')
    // `connection: close`, so that the connection does not delay `app.close()` after the feed has ended
    return await reply.headers({ 'content-type': 'text/event-stream', 'cache-control': 'no-store', connection: 'close' }).send(reader)
  })

  const beat = setInterval(() => write(': keep-alive\n\n'), KEEP_ALIVE_MS).unref()

  // Runs after the devices are disconnected, so that the feed ends with their close codes.
  app.addHook('preClose', async () => {
    clearInterval(beat)
    for (const reader of readers) reader.push(null)
  })
}

/** The data of a message as a short text. */
function preview (data: unknown): string {
  if (data instanceof Uint8Array) return `${data.length} bytes`
  const text = JSON.stringify(data)
  return text.length > MAX_SHOWN_CHARACTERS ? `${text.slice(0, MAX_SHOWN_CHARACTERS)}…` : text
}
