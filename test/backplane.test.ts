import t from 'tap'
import { EVERYONE, lettersOf, type Owner } from '../lib/backplane.ts'
import { localBackplane } from '../lib/backplanes/local.ts'
import { backplaneContract } from './contracts/backplane.ts'

backplaneContract(t, 'localBackplane()', async () => {
  const backplane = localBackplane()
  return { a: backplane, b: backplane, close: async () => { await backplane.close?.() } }
})

t.test('one process is not remote', async t => {
  t.equal(localBackplane().remote, false)
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

t.test('what nodes tell each other has topics that no device may name', async t => {
  t.equal(EVERYONE, '$everyone')
  t.equal(lettersOf('n1'), '$letters/n1')
})
