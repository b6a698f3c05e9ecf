import { timingSafeEqual } from 'node:crypto'
import Fastify from 'fastify'
import devices, { type Options } from 'fastify-devices'
import devicesConsole from 'fastify-devices/console'

const { PORT = '3000', HOST = '127.0.0.1', TOKEN, DATA = './data', NATS_URL } = process.env

const app = Fastify({
  logger: { level: process.env.LOG_LEVEL ?? 'warn' },
  routerOptions: { maxParamLength: 128 }, // the longest device id
  return503OnClosing: false // the plugin answers during the drain, and says when to come back
})

// Without a token, only this machine may connect. With one, devices and callers must send it.
const isToken = (given = '') => {
  const [mine, theirs] = [Buffer.from(TOKEN!), Buffer.from(given)]
  return mine.length === theirs.length && timingSafeEqual(mine, theirs)
}
const rules: Options = TOKEN
  ? {
      authenticate: ({ token }) => isToken(token),
      guard: ({ headers }) => isToken(headers.authorization?.replace(/^Bearer /i, '')),
      authorizeTopic: () => true
    }
  : {}

await app.register(devices, { ...rules, ...await (NATS_URL ? together(NATS_URL) : alone()) })
await app.register(devicesConsole, { prefix: '/' })

/** A single node: letters on its disk. */
async function alone (): Promise<Options> {
  const { diskMailbox } = await import('fastify-devices/disk')
  return { mailbox: await diskMailbox({ path: DATA }) }
}

/** One node of several that use the same NATS. */
async function together (url: string): Promise<Options> {
  const { nats } = await import('fastify-devices/nats')
  return await nats({ servers: url.split(','), startWithout: true })
}

app.devices.handle('echo', params => params)
app.devices.on('message', (data, device) => device.send(data))

const url = await app.listen({ port: Number(PORT), host: HOST })
const key = TOKEN ? ' -H "authorization: Bearer <TOKEN>"' : ''
console.log(`
Listening on ${url} (open it in a browser: there is a page)
Connect a device:  npx wscat -c "${url.replace('http', 'ws')}/ws?deviceId=abc123"${key}
Type as a device:  {"jsonrpc":"2.0","id":1,"method":"echo","params":{"hello":"gateway"}}
Send to it:        curl -X POST ${url}/devices/abc123/messages${key} -H 'content-type: application/json' -d '{"hello":"world"}'
Send to all:       curl -X POST ${url}/broadcast${key} -H 'content-type: application/json' -d '{"hello":"all"}'
`)

for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => app.close())
