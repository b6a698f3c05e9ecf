import t, { type Test } from 'tap'
import type { Answer, Backplane, Request } from '../lib/cluster/backplane.ts'
import { Failure } from '../lib/protocol/errors.ts'
import { Dispatcher } from '../lib/messaging/dispatcher.ts'
import { Registry } from '../lib/connection/registry.ts'
import { fakeLog, gate, turn, until } from './fakes.ts'

const limits = { callTimeout: 1_000, maxTtl: 60_000, maxBuffered: 65_536, maxKeys: 10, keyTtl: 60_000 }

/** A dispatcher whose devices are all on other nodes, with the answers of their owners to a wake-up. */
function dispatcherWith (t: Pick<Test, 'teardown'>, answers: Array<Answer | undefined | Error | Promise<never>>) {
  const asked: Array<[string, Request['kind']]> = []
  const backplane = {
    async ask (deviceId: string, { kind }: Request) {
      asked.push([deviceId, kind])
      const answer = await answers.shift()
      if (answer instanceof Error) throw answer
      return answer
    }
  } as unknown as Backplane
  const known = new Set<string>()
  const letters = {
    async put (_deviceId: string, { id, digest }: { id: string, digest?: string }) {
      const fresh = !known.has(id)
      known.add(id)
      return { fresh, receipt: { id, digest, status: 'queued' } }
    }
  }
  const log = fakeLog()
  const dispatcher = new Dispatcher({ registry: new Registry(), backplane, letters: letters as any, node: 'n', limits, log })
  t.teardown(() => dispatcher.close())
  return { dispatcher, asked, log }
}

const ok: Answer = { ok: true, value: undefined }

t.test('a failed wake-up of an owner is retried until the owner answers', async t => {
  const running = setInterval(() => {}, 1_000)
  t.teardown(() => clearInterval(running))
  const { dispatcher, asked, log } = dispatcherWith(t, [new Failure('unreachable'), { ok: false, reason: 'dropped' }, ok])
  await dispatcher.send('d', 1, { ttl: 1_000 })
  await until(() => asked.length === 3)
  t.strictSame(asked, [['d', 'wake'], ['d', 'wake'], ['d', 'wake']])
  t.strictSame(log.lines.map(({ level, words }) => `${level}: ${words}`), ['warn: delivery wake-up failed'], 'which is logged once')
})

t.test('a retry wakes the owner too: the first attempt may have stored the letter without', async t => {
  const { dispatcher, asked } = dispatcherWith(t, [undefined, ok])
  for (let tries = 0; tries < 2; tries++) await dispatcher.send('d', 1, { ttl: 1_000, key: 'k' })
  await until(() => asked.length === 2)
  t.strictSame(asked, [['d', 'wake'], ['d', 'wake']])
})

t.test('a closed dispatcher retries no wake-up', async t => {
  const closed = gate()
  const { dispatcher, asked, log } = dispatcherWith(t, [closed.opened.then(() => { throw new Failure('unreachable') })])
  await dispatcher.send('d', 1, { ttl: 1_000 })
  await until(() => asked.length === 1)
  dispatcher.close()
  closed.open()
  await turn()
  t.strictSame(log.lines, [])
})
