import t from 'tap'
import { EVERYONE_TOPIC, lettersTopic, type Owner } from '../lib/cluster/backplane.ts'
import { localBackplane } from '../lib/cluster/local.ts'
import { backplaneContract } from './contracts/backplane.ts'

backplaneContract(t, 'localBackplane()', async () => {
  const backplane = localBackplane()
  return { a: backplane, b: backplane, close: async () => { await backplane.close?.() } }
})

t.test('one process is not remote', async t => {
  t.equal(localBackplane().remote, false)
})

t.test('a page of devices costs the same, however many are connected', async t => {
  const connected = async (count: number) => {
    const backplane = localBackplane()
    for (let at = 0; at < count; at++) {
      const owner = { presence: { deviceId: `d${at}`, node: 'n', since: 1 } } as Owner
      await backplane.own(`d${at}`, owner)
    }
    return backplane
  }
  const [few, many] = [await connected(500), await connected(100_000)]
  const fastest = async (backplane: typeof few) => {
    let least = Infinity
    for (let round = 0; round < 30; round++) {
      const since = performance.now()
      t.equal((await backplane.list({ limit: 100, after: 'd3' })).length, 100)
      least = Math.min(least, performance.now() - since)
    }
    return least
  }
  const [one, other] = [await fastest(few), await fastest(many)]
  t.ok(other < 20 * one, `${one} ms among 500, ${other} ms among 100,000`)
})

t.test('generations grow over restarts', async t => {
  const owner = { presence: {} } as Owner
  const before = Date.now()
  const { generation } = await localBackplane().own('d', owner)
  t.ok(generation >= before && generation <= Date.now())
})

t.test('generations grow though the clock goes back', async t => {
  const { now } = Date
  t.teardown(() => { Date.now = now })
  const backplane = localBackplane()
  const owner = { presence: {}, yield () {} } as unknown as Owner
  const generations: number[] = []
  for (const time of [5_000, 5_000, 10, 6_000]) {
    Date.now = () => time
    generations.push((await backplane.own('d', owner)).generation)
  }
  t.strictSame(generations, [5_000, 5_001, 5_002, 6_000])
})

t.test('the topics between nodes are topics that no device may name', async t => {
  t.equal(EVERYONE_TOPIC, '$everyone')
  t.equal(lettersTopic('n1'), '$letters/n1')
})
