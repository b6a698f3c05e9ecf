import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { join } from 'node:path'
import t from 'tap'
import { natsBackplane, natsMailbox } from '../lib/nats/index.ts'
import { natsServer } from './campaigns/nats.ts'
import { freePort } from './campaigns/port.ts'
import { clusterContract, refusesLargePayloads } from './contracts/cluster.ts'
import { natsEngine } from './engines.ts'
import { withProgram } from './programs.ts'
import { root } from './root.ts'
import { connect, request, until } from './support.ts'

withProgram(t, 'nats-server', 'many nodes over NATS', async (t, path) => {
  const server = await natsEngine.start(t)
  clusterContract(t, natsEngine, server)

  t.test('a payload above the limit of NATS is refused by the first node, whatever its kind', async t => {
    const folder = t.testdir({ 'small.conf': 'max_payload: 16384' })
    await refusesLargePayloads(t, await natsEngine.start(t, ['-c', `${folder}/small.conf`]), 16_384)
  })

  t.test('without NATS neither a backplane nor a mailbox of its own starts unless startWithout is set', async t => {
    const own = await natsServer(t, path)
    await own.stop()
    const refused = { message: /NATS at 127\.0\.0\.1:\d+ cannot be used.*startWithout/ }
    await t.rejects(natsBackplane({ servers: own.servers }), refused)
    await t.rejects(natsMailbox({ servers: own.servers }), refused)
  })

  t.test('the example starts NATS and three nodes that reach each other, and stops all of them', async t => {
    const first = await freePorts(3)
    const { NODE_OPTIONS: _, ...env } = process.env
    const script = spawn(join(root, 'example/cluster.sh'), {
      env: { ...env, PORT: String(first), NATS_PORT: String(await freePort()), LOG_LEVEL: 'silent' }, stdio: 'ignore'
    })
    const exited = once(script, 'exit')
    t.teardown(async () => {
      script.kill('SIGTERM')
      await exited
    })
    const nodes = [0, 1, 2].map(at => ({ url: `http://127.0.0.1:${first + at}` }))
    for (const node of nodes) await until(async () => (await request(node, 'GET', '/devices').catch(() => ({ status: 0 }))).status === 200)
    const device = await connect(nodes[0]!.url, 'abc123')
    for (const node of nodes) t.equal((await request(node, 'POST', '/devices/abc123/messages', { hello: 'world' })).status, 200)
    t.equal((await request(nodes[2]!, 'POST', '/devices/abc123/messages?ttl=60', { hello: 'letter' })).status, 202)
    t.match(await device.next(({ id }) => id !== undefined), { params: { data: { hello: 'letter' } } })
    script.kill('SIGTERM')
    await exited
    for (const node of nodes) await t.rejects(request(node, 'GET', '/devices'))
  })
})

/** The first of `count` consecutive free ports. */
async function freePorts (count: number): Promise<number> {
  for (;;) {
    const first = await freePort()
    const servers = Array.from({ length: count }, (_, at) => createServer().listen(first + at, '127.0.0.1'))
    const opened = await Promise.allSettled(servers.map(server => once(server, 'listening')))
    for (const server of servers) server.close()
    if (opened.every(({ status }) => status === 'fulfilled')) return first
  }
}
