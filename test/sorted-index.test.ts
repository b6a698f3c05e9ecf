import t from 'tap'
import { SortedIndex } from '../lib/cluster/sorted-index.ts'
import { random } from './fakes.ts'

t.test('keys come in order, each once, from where a page begins', async t => {
  const index = new SortedIndex()
  t.strictSame([...index.after('')], [])
  for (const key of ['d3', 'd1', 'D2', 'd10', 'd3', 'ü', '~']) index.add(key)
  const order = ['D2', 'd1', 'd10', 'd3', '~', 'ü']
  t.strictSame([...index.after('')], order)
  for (const [at, key] of order.entries()) t.strictSame([...index.after(key)], order.slice(at + 1), key)
  t.strictSame([...index.after('d2')], ['d3', '~', 'ü'], 'a page may begin behind a key that is not there')
  t.strictSame([...index.after('', 'd1')], ['d1', 'd10'])
  t.strictSame([...index.after('d1', 'd1')], ['d10'])
  t.strictSame([...index.after('d2', 'd1')], [])
  for (const key of ['d2', 'zz', '', 'd1', 'd1']) index.delete(key)
  t.strictSame([...index.after('')], order.filter(key => key !== 'd1'))
  for (const key of order) index.delete(key)
  t.strictSame([...index.after('')], [])
})

t.test('after thousands of random changes it holds what a sorted array holds', async t => {
  const next = random(7)
  const index = new SortedIndex()
  const held = new Set<string>()
  const change = (likely: number) => {
    const key = `d${Math.floor(next() * 20_000)}`
    if (next() < likely) {
      index.add(key)
      held.add(key)
    } else {
      index.delete(key)
      held.delete(key)
    }
  }
  const compare = () => {
    const sorted = [...held].toSorted()
    t.strictSame([...index.after('')].join(), sorted.join())
    const from = `d${Math.floor(next() * 20_000)}`
    t.strictSame([...index.after(from)].join(), sorted.filter(key => key > from).join())
    for (const prefix of [`d${Math.floor(next() * 200)}`, from, 'd', 'e', 'c']) {
      t.strictSame([...index.after('', prefix)].join(), sorted.filter(key => key.startsWith(prefix)).join())
      t.strictSame([...index.after(from, prefix)].join(), sorted.filter(key => key > from && key.startsWith(prefix)).join())
    }
  }
  for (const likely of [1, 0.5, 0.1, 0.9, 0.02]) {
    for (let round = 0; round < 5; round++) {
      for (let step = 0; step < 8_000; step++) change(likely)
      compare()
    }
  }
  t.ok(held.size > 0)
  for (const key of held) index.delete(key)
  t.strictSame([...index.after('')], [])
})

t.test('keys that come in ascending and in descending order are in order', async t => {
  const keys = Array.from({ length: 3_000 }, (_, at) => String(at).padStart(4, '0'))
  for (const order of [keys, keys.toReversed()]) {
    const index = new SortedIndex()
    for (const key of order) index.add(key)
    t.strictSame([...index.after('')].join(), keys.join())
    for (const key of order) index.delete(key)
    t.strictSame([...index.after('')], [])
  }
})
