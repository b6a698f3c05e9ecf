import t, { type Test } from 'tap'
import { assertScript, beatScript, claimScript, joinScript, releaseScript, sweepScript } from '../lib/redis/backplane-scripts.ts'
import type { Link } from '../lib/redis/link.ts'
import { Membership } from '../lib/redis/membership.ts'
import { OwnershipTable } from '../lib/redis/ownership.ts'
import type { Script } from '../lib/redis/script.ts'
import { ServerClock } from '../lib/redis/server-clock.ts'
import { Failure } from '../lib/protocol/errors.ts'
import { Connection, gate, turn, until } from './fakes.ts'

type Answers = Map<Script, (args: unknown[]) => unknown>

/** Redis as a table: what each script answers. */
class FakeLink {
  up = true
  readonly ran: Array<[script: Script, args: unknown[]]> = []
  readonly resets: string[] = []
  readonly reported: string[] = []
  readonly answers: Answers = new Map<Script, (args: unknown[]) => unknown>([
    [joinScript, () => '1'],
    [beatScript, () => ['1', '0', 1]],
    [claimScript, () => [1, '5']],
    [assertScript, args => Array.from({ length: (args.length - 2) / 6 }, () => 1)],
    [releaseScript, () => null],
    [sweepScript, () => '0']
  ])

  #changed: (up: boolean) => void = () => {}

  onChange (listener: (up: boolean) => void): void {
    this.#changed = listener
  }

  change (up: boolean): void {
    this.up = up
    this.#changed(up)
  }

  async run (script: Script, _keys: string[], args: unknown[]): Promise<unknown> {
    this.ran.push([script, args])
    return await this.answers.get(script)!(args)
  }

  countOf (script: Script): number {
    return this.ran.filter(([ran]) => ran === script).length
  }

  reset (reason: string): void {
    this.resets.push(reason)
  }

  reportOnce (error: Error): void {
    this.reported.push(error.message)
  }
}

/** A node whose intervals pass when the test says so. */
async function join (t: Pick<Test, 'teardown'>) {
  const { setInterval } = globalThis
  const intervals: Array<() => void> = []
  globalThis.setInterval = ((callback: () => void) => {
    intervals.push(callback)
    return { unref () { return this } }
  }) as never
  t.teardown(() => { globalThis.setInterval = setInterval })
  const link = new FakeLink()
  const nodes = new Membership(link as unknown as Link, new ServerClock())
  const owners = new OwnershipTable(link as unknown as Link, nodes)
  await nodes.prepare((script, keys, args) => link.run(script, keys, args))
  link.change(true)
  await turn()
  const [beat, recheck] = intervals as [() => void, () => void]
  return { link, nodes, owners, beat, recheck }
}

t.test('the records of all devices are compared in turn, again and again', async t => {
  const { link, owners, recheck } = await join(t)
  for (const id of ['d', 'e']) await owners.own(id, new Connection(id, 'n'))
  const compared = () => link.ran.filter(([script]) => script === assertScript).map(([, args]) => args[2])
  for (let interval = 0; interval < 8; interval++) recheck()
  await turn()
  t.strictSame(compared(), ['d', 'e', 'd', 'e', 'd', 'e'])
  link.change(false)
  recheck()
  t.equal(compared().length, 6)
})

t.test('a demand to yield that comes before the answer to the claim is obeyed', async t => {
  const { link, owners } = await join(t)
  const claimed = gate<unknown>()
  link.answers.set(claimScript, () => claimed.opened)
  const [owner, neighbour] = [new Connection('d', 'n'), new Connection('e', 'n')]
  const owning = owners.own('d', owner)
  const alsoOwning = owners.own('e', neighbour)
  await turn()
  owners.yield('d', 7)
  owners.yield('d', 6)
  claimed.open([1, '5'])
  await alsoOwning
  const { release } = await owning
  t.strictSame([owner.yielded, neighbour.yielded], [1, 0])
  t.equal(await owners.confirmed('d'), undefined)
  await release()
  t.equal(link.countOf(releaseScript), 0, 'the record is of the newer owner')
})

t.test('of two claims that are answered out of order the higher generation stays', async t => {
  const { link, owners } = await join(t)
  const [first, second] = [gate<unknown>(), gate<unknown>()]
  const answers = [first, second]
  link.answers.set(claimScript, () => answers.shift()!.opened)
  const [older, newer] = [new Connection('d', 'older'), new Connection('d', 'newer')]
  const owning = [owners.own('d', older), owners.own('d', newer)]
  await turn()
  second.open([1, '6'])
  await owning[1]
  first.open([1, '5'])
  await owning[0]
  t.strictSame([older.yielded, newer.yielded], [1, 0])
  t.equal(await owners.confirmed('d'), newer)
})

t.test('a device that was claimed while its node joined anew is compared once more', async t => {
  const { link, nodes, owners } = await join(t)
  const claimed = gate<unknown>()
  link.answers.set(claimScript, () => claimed.opened)
  const owning = owners.own('d', new Connection('d', 'n'))
  await turn()
  nodes.rejoin()
  await turn()
  t.equal(link.countOf(assertScript), 0)
  claimed.open([1, '5'])
  await owning
  t.strictSame(link.ran.at(-1), [assertScript, [nodes.self, 2, 'd', 1, 5, link.ran.at(-1)![1][5], '0', 'n']])
  link.answers.set(assertScript, () => [])
  link.answers.set(claimScript, () => { nodes.rejoin(); return [1, '6'] })
  t.equal((await owners.own('e', new Connection('e', 'n'))).generation, 6, 'a failure is left to the next comparison')
})

t.test('a node whose lease has ended joins anew, and the devices that came meanwhile are written', async t => {
  const { link, nodes, owners, beat } = await join(t)
  link.answers.set(claimScript, () => [])
  const owner = new Connection('d', 'n')
  await owners.own('d', owner)
  await until(() => link.countOf(assertScript) > 0)
  t.equal(nodes.epoch, 2)
  t.equal(await owners.confirmed('d'), owner)
  link.answers.set(beatScript, () => ['1', '0', 0])
  beat()
  await until(() => nodes.epoch === 3)
  t.strictSame(link.resets, [])
})

t.test('a node that cannot join or write its devices connects anew', async t => {
  const { link, nodes, owners } = await join(t)
  await owners.own('d', new Connection('d', 'n'))
  link.answers.set(assertScript, () => [])
  nodes.rejoin()
  await until(() => link.resets.length === 1)
  link.answers.set(assertScript, () => { link.up = false; throw new Failure('unreachable') })
  nodes.rejoin()
  await turn()
  link.up = true
  link.answers.set(joinScript, () => { throw new Error('refused') })
  nodes.rejoin()
  await until(() => link.resets.length === 2)
  t.strictSame(link.resets, ['devices cannot be written: The lease of this node has ended', 'cannot join: refused'])
})

t.test('a connection is given up if beats are not answered, or not heard', async t => {
  for (const [isAnswered, reason] of [[true, 'Redis delivers no messages'], [false, 'Redis does not answer']] as const) {
    const { link, beat } = await join(t)
    if (!isAnswered) link.answers.set(beatScript, () => new Promise(() => {}))
    for (let count = 0; count < 5; count++) {
      t.strictSame(link.resets, [])
      beat()
      await turn()
    }
    t.strictSame(link.resets, [reason])
  }
})

t.test('a beat that fails is reported, unless the connection has ended', async t => {
  const { link, beat } = await join(t)
  link.answers.set(beatScript, () => { throw new Error('no disk') })
  beat()
  await turn()
  link.answers.set(beatScript, () => { link.up = false; throw new Error('ended') })
  beat()
  await turn()
  t.strictSame(link.reported, ['no disk'])
})

t.test('a node does not beat while it joins, and ignores the answer to an earlier beat', async t => {
  const { link, nodes, beat } = await join(t)
  const [beaten, joined] = [gate<unknown>(), gate<unknown>()]
  link.answers.set(beatScript, () => beaten.opened)
  link.answers.set(joinScript, () => joined.opened)
  beat()
  nodes.rejoin()
  beat()
  t.equal(link.countOf(beatScript), 1)
  beaten.open(['1', '99', 0])
  joined.open('1')
  await turn()
  t.equal(nodes.highestGeneration, 0)
  t.equal(nodes.epoch, 2)
})
