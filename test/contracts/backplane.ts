import type { Test } from 'tap'
import type { Answer, Backplane, Owner, Presence, Publication, Request } from '../../lib/cluster/backplane.ts'
import { gate, until } from '../fakes.ts'

/** Two nodes' views of what joins them; where that is one process, both are the same. */
export interface Joined {
  a: Backplane
  b: Backplane
  close (): Promise<void>
}

const wake: Request = { kind: 'wake' }

/** The connection of a device, which answers what the test tells it to. */
class FakeOwner implements Owner {
  readonly presence: Omit<Presence, 'generation'>
  readonly asked: Request[] = []
  readonly topics: string[]
  yielded = 0
  signal: AbortSignal | undefined
  reply: (request: Request) => Answer | Promise<Answer> = () => ({ ok: true, value: this.presence.node })

  constructor (deviceId: string, node: string, topics: string[] = []) {
    this.presence = { deviceId, node, since: 1_234 }
    this.topics = topics
  }

  async answer (request: Request, signal?: AbortSignal): Promise<Answer> {
    this.asked.push(request)
    this.signal = signal
    return await this.reply(request)
  }

  /** What it takes to show that its device is there. */
  confirm: () => Promise<void> = async () => {}

  confirmAlive (): Promise<void> {
    return this.confirm()
  }

  listensTo (topic: string): boolean {
    return this.topics.includes(topic)
  }

  yield (): void {
    this.yielded++
  }
}

/** What every backplane must hold. */
export function backplaneContract (t: Test, name: string, make: () => Promise<Joined>): void {
  void t.test(`${name} keeps the contract of a backplane`, async t => {
    const join = async (t: Pick<Test, 'teardown'>) => {
      const joined = await make()
      t.teardown(() => joined.close())
      return joined
    }
    /** Watching and letting go take effect in their own time; a publication that counts its listeners tells when. */
    const heardBy = async (backplane: Backplane, topic: string, nodes: number) => {
      await until(async () => (await backplane.publish({ id: 'probe', topic, data: null })).nodes === nodes)
    }
    const listener = (sent = 0) => {
      const heard: Publication[] = []
      const listen = (publication: Publication) => {
        if (publication.id !== 'probe') heard.push(publication)
        return sent
      }
      return { heard, listen }
    }

    t.test('nodes that reach each other are healthy', async t => {
      const { a, b } = await join(t)
      for (const node of [a, b]) t.strictSame(await node.health?.() ?? { ok: true }, { ok: true })
    })

    t.test('the generations of a device grow with every connection, on whichever node', async t => {
      const { a, b } = await join(t)
      let last = 0
      for (const node of [a, b, a, a, b, b, a]) {
        const { generation } = await node.own('d', new FakeOwner('d', 'n'))
        t.ok(Number.isSafeInteger(generation) && generation > last, `${generation} after ${last}`)
        last = generation
      }
    })

    t.test('of concurrent owners of a device each has its own generation, and the highest stays', async t => {
      const { a, b } = await join(t)
      const owners = Array.from({ length: 10 }, (_, at) => new FakeOwner('d', `n${at}`))
      const ownerships = await Promise.all(owners.map((owner, at) => (at % 2 === 0 ? a : b).own('d', owner)))
      const generations = ownerships.map(({ generation }) => generation)
      t.equal(new Set(generations).size, 10)
      const newest = generations.indexOf(Math.max(...generations))
      await until(() => owners.every(({ yielded }, at) => at === newest || yielded > 0))
      t.equal(owners[newest]!.yielded, 0)
      t.strictSame(await a.ask('d', wake), { ok: true, value: `n${newest}` })
      t.strictSame(await b.ask('d', wake), { ok: true, value: `n${newest}` })
    })

    t.test('an older owner yields, on its own node and on the other', async t => {
      const { a, b } = await join(t)
      const [first, second, third] = ['1', '2', '3'].map(node => new FakeOwner('d', node)) as [FakeOwner, FakeOwner, FakeOwner]
      const neighbour = new FakeOwner('e', '1')
      await a.own('e', neighbour)
      await a.own('d', first)
      t.equal(first.yielded, 0)
      await a.own('d', second)
      await until(() => first.yielded === 1)
      await b.own('d', third)
      await until(() => second.yielded === 1)
      t.equal(third.yielded, 0)
      t.equal(neighbour.yielded, 0)
    })

    t.test('a new connection owns nothing before its device has confirmed that it is alive, and nothing at all if it has not', async t => {
      const { a, b } = await join(t)
      const older = new FakeOwner('d', 'older')
      const { generation } = await a.own('d', older)
      for (const node of [a, b]) {
        const gone = new FakeOwner('d', 'gone')
        const answered = gate()
        answered.opened.catch(() => {}) // it may fail before anybody waits for it
        gone.confirm = () => answered.opened
        const owning = node.own('d', gone).then(() => 'owned', error => error.message)
        await until(async () => ((await b.ask('d', wake)) as { value?: unknown }).value === 'older')
        answered.fail(new Error('it has left'))
        t.equal(await owning, 'it has left')
        for (const one of [a, b]) t.strictSame(await one.ask('d', wake), { ok: true, value: 'older' })
        t.match(await b.list({ limit: 9 }), [{ node: 'older', generation }])
      }
      t.equal(older.yielded, 0)
      const newer = new FakeOwner('d', 'newer')
      const answered = gate()
      newer.confirm = () => answered.opened
      const owning = b.own('d', newer)
      t.strictSame(await a.ask('d', wake), { ok: true, value: 'older' })
      answered.open()
      await owning
      await until(() => older.yielded === 1)
      t.strictSame(await a.ask('d', wake), { ok: true, value: 'newer' })
    })

    t.test('the owner of a device answers, whichever node asks', async t => {
      const { a, b } = await join(t)
      const owner = new FakeOwner('d', 'here')
      await a.own('d', owner)
      const requests: Request[] = [
        { kind: 'call', method: 'read', params: { name: 'ü€😀', list: [1, null] }, timeout: 1_000 },
        { kind: 'send', id: 'm1', data: { at: 1 } },
        { kind: 'confirm', id: 'm2', data: 'text', timeout: 7 },
        { kind: 'describe' },
        { kind: 'end' },
        { kind: 'join', topic: 'a/+' }
      ]
      for (const node of [a, b]) {
        for (const request of requests) {
          owner.reply = ({ kind }) => ({ ok: true, value: { kind, list: [1, null, 'ü€😀'] } })
          t.strictSame(await node.ask('d', request), { ok: true, value: { kind: request.kind, list: [1, null, 'ü€😀'] } })
          // what is left of the timeout when it arrives
          const { timeout: left, ...asked } = owner.asked.at(-1) as { timeout?: number }
          const { timeout, ...sent } = request as { timeout?: number }
          t.strictSame(asked, sent)
          t.ok(timeout === left || (left! > 0 && left! < timeout!))
        }
      }
      t.equal(owner.asked.length, 12)
    })

    t.test('requests of one node reach an owner in order', async t => {
      const { a, b } = await join(t)
      const owner = new FakeOwner('d', 'here')
      await a.own('d', owner)
      for (const node of [a, b]) {
        const ids = Array.from({ length: 50 }, (_, at) => `m${at}`)
        // what is said of one takes longer than what is said of the next
        const asked = ids.map((id, at) => node.ask('d', { kind: 'send', id, data: 'x'.repeat(at % 2 === 0 ? 20_000 : 1) }))
        await Promise.all(asked)
        t.strictSame(owner.asked.splice(0).map(request => 'id' in request && request.id), ids)
      }
    })

    t.test('a name that begins with $ is owned and asked like a device, and never listed', async t => {
      const { a, b } = await join(t)
      const name = '$worker/n-1/x_Y'
      const worker = new FakeOwner(name, 'n-1', ['news'])
      const { release } = await a.own(name, worker)
      await b.own('d', new FakeOwner('d', 'b', ['news']))
      const connection = {
        id: 'd', node: 'b', generation: 7, since: 1, address: '::1', protocol: 'jsonrpc', topics: ['news'], credentials: { user: 'ü' }
      }
      const request: Request = { kind: 'answer', method: 'read', params: { data: Uint8Array.of(0, 255) }, connection, turn: 3 }
      for (const node of [a, b]) {
        worker.asked.length = 0
        t.strictSame(await node.ask(name, request), { ok: true, value: 'n-1' })
        const { params: { data }, ...rest } = worker.asked[0] as any
        t.strictSame(rest, { kind: 'answer', method: 'read', connection, turn: 3 })
        t.strictSame([...data], [0, 255])
        for (const topic of [undefined, 'news']) t.strictSame((await node.list({ limit: 9, topic })).map(({ deviceId }) => deviceId), ['d'])
      }
      await release()
      for (const node of [a, b]) t.equal(await node.ask(name, request), undefined)
    })

    t.test('a failure carries its reason and the error of the device', async t => {
      const { a, b } = await join(t)
      const owner = new FakeOwner('d', 'here')
      owner.reply = () => ({ ok: false, reason: 'refused', detail: { code: 7, message: 'No', data: [1] } })
      await a.own('d', owner)
      for (const node of [a, b]) t.strictSame(await node.ask('d', wake), { ok: false, reason: 'refused', detail: { code: 7, message: 'No', data: [1] } })
    })

    t.test('bytes travel as bytes, in a request, in an answer and in a publication', async t => {
      const { a, b } = await join(t)
      const bytes = Uint8Array.from({ length: 256 }, (_, at) => at)
      const owner = new FakeOwner('d', 'here')
      owner.reply = () => ({ ok: true, value: { data: bytes } })
      await a.own('d', owner)
      const answer = await b.ask('d', { kind: 'send', id: 'm1', data: bytes }) as any
      const { data: asked } = owner.asked[0] as any
      const { heard, listen } = listener()
      a.watch('bytes', listen)
      await heardBy(b, 'bytes', 1)
      await b.publish({ id: 'm1', topic: 'bytes', data: bytes })
      await until(() => heard.length === 1)
      for (const found of [asked, answer.value.data, heard[0]!.data]) {
        t.ok(found instanceof Uint8Array)
        t.strictSame([...found], [...bytes])
      }
    })

    t.test('the owner is notified when a caller gives up', async t => {
      const { a, b } = await join(t)
      const owner = new FakeOwner('d', 'here')
      await a.own('d', owner)
      for (const node of [a, b]) {
        const controller = new AbortController()
        const answered = gate<Answer>()
        owner.signal = undefined
        owner.reply = () => answered.opened
        const asked = node.ask('d', { kind: 'call', method: 'read', params: null, timeout: 60_000 }, controller.signal).catch(() => {})
        await until(() => owner.signal !== undefined)
        t.equal(owner.signal!.aborted, false)
        controller.abort()
        await until(() => owner.signal!.aborted)
        answered.open({ ok: false, reason: 'dropped' })
        await asked
      }
    })

    t.test('a device that nobody owns does not answer', async t => {
      const { a, b } = await join(t)
      const owner = new FakeOwner('d', 'here')
      for (const node of [a, b]) t.equal(await node.ask('d', wake), undefined)
      const { release } = await a.own('d', owner)
      for (const node of [a, b]) t.equal(await node.ask('e', wake), undefined)
      await release()
      for (const node of [a, b]) t.equal(await node.ask('d', wake), undefined)
      await release()
      t.equal(owner.asked.length, 0)
      t.equal(owner.yielded, 0)
    })

    t.test('a late release by an older owner changes nothing for the newer one', async t => {
      const { a, b } = await join(t)
      const older = await a.own('d', new FakeOwner('d', 'older'))
      const newer = await b.own('d', new FakeOwner('d', 'newer'))
      await older.release()
      for (const node of [a, b]) t.strictSame(await node.ask('d', wake), { ok: true, value: 'newer' })
      t.strictSame((await a.list({ limit: 9 })).map(({ node, generation }) => [node, generation]), [['newer', newer.generation]])
      await newer.release()
      for (const node of [a, b]) t.equal(await node.ask('d', wake), undefined)
      const back = await a.own('d', new FakeOwner('d', 'back'))
      t.ok(back.generation > newer.generation)
    })

    t.test('a publication reaches every node that watches, and is counted', async t => {
      const { a, b } = await join(t)
      const [here, there, elsewhere] = [listener(3), listener(4), listener(100)]
      a.watch('news/+', here.listen)
      b.watch('news/sport', there.listen)
      b.watch('weather', elsewhere.listen)
      await heardBy(a, 'news/sport', 2)
      await heardBy(b, 'weather', 1)
      for (const [node, id] of [[a, 'm1'], [b, 'm2']] as const) {
        const publication = { id, topic: 'news/sport', data: { name: 'ü€😀', list: [1, null] } }
        t.strictSame(await node.publish(publication), { sent: 7, nodes: 2 })
        t.strictSame(here.heard.splice(0), [publication])
        t.strictSame(there.heard.splice(0), [publication])
      }
      t.strictSame(await a.publish({ id: 'm3', topic: 'news/chess', data: null }), { sent: 3, nodes: 1 })
      t.strictSame(await a.publish({ id: 'm4', topic: 'nothing', data: null }), { sent: 0, nodes: 0 })
      t.strictSame(here.heard, [{ id: 'm3', topic: 'news/chess', data: null }])
      t.strictSame([...there.heard, ...elsewhere.heard], [])
    })

    t.test('a listener gets a publication once, however many of its filters match', async t => {
      const { a, b } = await join(t)
      const { heard, listen } = listener(1)
      for (const filter of ['a/b', 'a/+', '+/b', 'a/#', '#']) a.watch(filter, listen)
      // each filter is in effect once a topic that only it matches is heard
      for (const topic of ['a/b', 'a/x', 'x/b', 'a', 'x']) await heardBy(b, topic, 1)
      t.strictSame(await b.publish({ id: 'm1', topic: 'a/b', data: 1 }), { sent: 1, nodes: 1 })
      t.equal(heard.length, 1)
    })

    t.test('a listener without devices for a topic does not count', async t => {
      const { a, b } = await join(t)
      const heard: Publication[] = []
      a.watch('#', publication => {
        heard.push(publication)
        return publication.topic === 'news' ? 3 : undefined
      })
      await heardBy(b, 'news', 1)
      for (const node of [a, b]) {
        t.strictSame(await node.publish({ id: 'm1', topic: 'news', data: 1 }), { sent: 3, nodes: 1 })
        t.strictSame(await node.publish({ id: 'm2', topic: 'weather', data: 1 }), { sent: 0, nodes: 0 })
      }
      t.strictSame(heard.filter(({ id }) => id === 'm2').length, 2)
    })

    t.test('wildcards match as in MQTT', async t => {
      const { a, b } = await join(t)
      const table: Array<[filter: string, matches: string[], others: string[]]> = [
        ['a/#', ['a', 'a/b', 'a/b/c'], ['b', 'ab']],
        ['+/b', ['a/b', '/b'], ['b', 'a/b/c']],
        ['a b.*>/+', ['a b.*>/c'], ['a b.*>', 'aab.*>/c']]
      ]
      for (const [filter, matches, others] of table) {
        const unwatch = a.watch(filter, listener(1).listen)
        await heardBy(b, matches[0]!, 1)
        for (const topic of matches) t.equal((await b.publish({ id: 'm', topic, data: null })).sent, 1, `${filter} hears ${topic}`)
        for (const topic of others) t.equal((await b.publish({ id: 'm', topic, data: null })).sent, 0, `${filter} does not hear ${topic}`)
        unwatch()
        await heardBy(b, matches[0]!, 0)
      }
    })

    t.test('publications between nodes do not reach the filter `#`', async t => {
      const { a, b } = await join(t)
      const [everything, own] = [listener(1), listener(1)]
      for (const filter of ['#', '+/+']) a.watch(filter, everything.listen)
      b.watch('$letters/n1', own.listen)
      await heardBy(b, 'x', 1)
      await until(async () => (await a.publish({ id: 'probe', topic: '$letters/n1', data: null })).nodes > 0)
      t.strictSame(await a.publish({ id: 'm1', topic: '$letters/n1', data: 1 }), { sent: 1, nodes: 1 })
      t.strictSame(everything.heard, [])
      t.strictSame(own.heard, [{ id: 'm1', topic: '$letters/n1', data: 1 }])
    })

    t.test('a listener that no longer watches a filter gets only what its other filters match', async t => {
      const { a, b } = await join(t)
      const { heard, listen } = listener(1)
      const unwatch = a.watch('a', listen)
      a.watch('b', listen)
      await heardBy(b, 'a', 1)
      await heardBy(b, 'b', 1)
      unwatch()
      unwatch()
      await heardBy(b, 'a', 0)
      await b.publish({ id: 'm1', topic: 'a', data: 1 })
      t.strictSame(await b.publish({ id: 'm2', topic: 'b', data: 2 }), { sent: 1, nodes: 1 })
      t.strictSame(heard, [{ id: 'm2', topic: 'b', data: 2 }])
    })

    t.test('connected devices are listed in the order of ids, in pages, from all nodes', async t => {
      const { a, b } = await join(t)
      t.strictSame(await a.list({ limit: 10 }), [])
      const generations = new Map<string, number>()
      for (const [at, id] of ['d3', 'd1', 'd5', 'D2', 'd4', 'd10'].entries()) {
        const { generation } = await (at % 2 === 0 ? a : b).own(id, new FakeOwner(id, at % 2 === 0 ? 'a' : 'b'))
        generations.set(id, generation)
      }
      const order = ['D2', 'd1', 'd10', 'd3', 'd4', 'd5']
      for (const node of [a, b]) {
        const all = await node.list({ limit: 100 })
        t.strictSame(all.map(({ deviceId }) => deviceId), order)
        t.strictSame(all[3], { deviceId: 'd3', node: 'a', since: 1_234, generation: generations.get('d3') })
        const paged: string[] = []
        for (let after: string | undefined; ;) {
          const page = await node.list({ limit: 4, after })
          paged.push(...page.map(({ deviceId }) => deviceId))
          if (page.length < 4) break
          after = page.at(-1)!.deviceId
        }
        t.strictSame(paged, order)
        t.strictSame((await node.list({ limit: 1, after: 'd2' })).map(({ deviceId }) => deviceId), ['d3'], 'a page may begin behind a device that is away')
        t.strictSame(await node.list({ limit: 3, after: 'd5' }), [])
        const begins = async (prefix: string, after?: string) => (await node.list({ limit: 9, prefix, after })).map(({ deviceId }) => deviceId)
        t.strictSame(await begins('d1'), ['d1', 'd10'])
        t.strictSame(await begins('d1', 'd1'), ['d10'])
        t.strictSame(await begins('e'), [])
      }
    })

    t.test('connected devices can be listed by topic', async t => {
      const { a, b } = await join(t)
      await a.own('d1', new FakeOwner('d1', 'a', ['news']))
      await b.own('d2', new FakeOwner('d2', 'b', ['weather']))
      await b.own('d3', new FakeOwner('d3', 'b', ['weather', 'news']))
      await a.own('d4', new FakeOwner('d4', 'a', ['news']))
      for (const node of [a, b]) {
        const ids = async (page: Parameters<Backplane['list']>[0]) => (await node.list(page)).map(({ deviceId }) => deviceId)
        t.strictSame(await ids({ limit: 9, topic: 'news' }), ['d1', 'd3', 'd4'])
        t.strictSame(await ids({ limit: 2, topic: 'news' }), ['d1', 'd3'])
        t.strictSame(await ids({ limit: 2, topic: 'news', after: 'd1' }), ['d3', 'd4'])
        t.strictSame(await ids({ limit: 9, topic: 'sport' }), [])
      }
    })

    t.test('a device that left is not listed, and one that reconnected is listed once', async t => {
      const { a, b } = await join(t)
      const first = await a.own('d', new FakeOwner('d', 'a'))
      const second = await b.own('d', new FakeOwner('d', 'b'))
      for (const node of [a, b]) t.strictSame(await node.list({ limit: 9 }), [{ deviceId: 'd', node: 'b', since: 1_234, generation: second.generation }])
      await first.release()
      await second.release()
      for (const node of [a, b]) t.strictSame(await node.list({ limit: 9 }), [])
    })
  })
}
