import { setTimeout as sleep } from 'node:timers/promises'
import devices from '../../lib/index.ts'
import { Agreement } from './agreement.ts'
import { Balancer } from './balancer.ts'
import { command, Verdict, type Outcome } from './campaign.ts'
import { openEngine, startJoiningEngine, type EngineAccess, type EngineChoice, type JoiningEngine } from './engine.ts'
import { Host, quietApp, type HostedApp } from './host.ts'
import { LetterDevice, LetterFlow, TOPIC } from './letter-flow.ts'
import { describeLosses } from './letter-tally.ts'
import { LossWindows } from './loss-windows.ts'

interface Size extends EngineChoice, Record<string, number | string> {
  devices: number
  kills: number
  pauses: number
  /** Milliseconds for which a node is paused. */
  pause: number
  restarts: number
  /** Nodes that are closed and restarted, as a deploy does. */
  leaves: number
  /** Milliseconds after a fault within which each device has one owner again. */
  within: number
  /** Maximum milliseconds of a request to a device of the same node while the engine restarts. */
  slow: number
  /** Maximum median of the milliseconds after which a device of another node is reported as unreachable, while the engine is down. */
  refused: number
}

/** A fault in progress. */
interface Fault {
  /** When devices may have lost their owner. */
  at: number
  /** Stops traffic that runs until the cluster has recovered. */
  end: () => Promise<unknown>
}

const NODES = ['n1', 'n2', 'n3']
const TRAFFIC_INTERVAL_MS = 5
const EMPTY_BODY = '{}'
/** Statuses of requests across nodes while the engine is down and until a node has reconnected. */
const EXPECTED_STATUSES = new Set(['200', '404', '502', '503'])
const HANGING_CALLS = 20
/** A lost call is detected long before its own timeout. */
const CALL_TIMEOUT_MS = 60_000
const LOST_TIMEOUT_MS = 5_000
const OUTAGE_MS = 500
const POLL_INTERVAL_MS = 50
const TIMEOUT_MS = 60_000

/** Nodes die, pause, and lose the engine while letters flow: no letter is lost or delivered twice, and each device has one owner. */
export async function cluster (size: Size): Promise<Outcome> {
  const verdict = new Verdict()
  const testCluster = await TestCluster.build(size)
  const { title } = testCluster.engine
  try {
    await testCluster.settled(performance.now())
    const flow = testCluster.flow()
    const outage = new OutageStats()
    const slowest: Record<string, number> = {}
    const faults = [
      ...Array.from({ length: size.kills }, (_, at) => ({ kind: 'kill', fault: () => testCluster.kill(at, verdict) })),
      ...Array.from({ length: size.pauses }, (_, at) => ({ kind: 'pause', fault: () => testCluster.pause(at, size.pause) })),
      ...Array.from({ length: size.restarts }, (_, at) => ({ kind: `restart of ${title}`, fault: () => testCluster.restart(at, outage) })),
      ...Array.from({ length: size.leaves }, (_, at) => ({ kind: 'leave', fault: () => testCluster.leave(at, verdict) }))
    ]
    for (const { kind, fault } of faults) {
      const { at, end } = await withTimeout(fault(), `a ${kind}`)
      const took = await withTimeout(testCluster.settled(at), `the settling after a ${kind}`)
      await withTimeout(end(), `what went on during a ${kind}`)
      verdict.within(`milliseconds until each device has one owner after a ${kind}`, took, size.within)
      slowest[kind] = Math.max(slowest[kind] ?? 0, Math.round(took))
      verdict.same(`devices that hear a broadcast after a ${kind}`, await withTimeout(testCluster.broadcast(), 'a broadcast'), size.devices)
      await withTimeout(testCluster.restartNodes(), 'the start of a node')
    }
    await flow.stop()
    const { lost, twice, unexpected, outOfOrder, ...tally } = await flow.tally(() => testCluster.lossWindows)
    verdict.same('letters that no node accepted', flow.refused, 0)
    verdict.same('letters lost', lost, 0)
    verdict.same('letters seen twice', twice, 0)
    verdict.same('letters that nobody sent', unexpected, 0)
    verdict.same('letters out of order', outOfOrder, 0)
    verdict.same('devices that stopped reconnecting', testCluster.stoppedDevices, 0)
    verdict.same('uncaught errors', testCluster.faults, [])
    verdict.same('requests for devices of the same node that were harmed by an outage', outage.harmed, [])
    verdict.within('milliseconds of the slowest of them', Math.max(...outage.local), size.slow)
    if (size.restarts > 0) verdict.within('milliseconds that it usually takes to be refused', quantile(outage.refusals, 0.5), size.refused)
    verdict.same('answers for devices of other nodes', Object.keys(outage.statuses).filter(status => !EXPECTED_STATUSES.has(status)), [])
    return {
      line: `cluster: ${NODES.length} nodes, ${size.devices} devices, ${size.kills} kills, ${size.pauses} pauses of ${size.pause} ms, ${size.restarts} restarts of ${title}, ${size.leaves} leaves; ` +
        `${tally.acknowledged} letters acknowledged to their senders, ${tally.seen} seen, lost ${lost}, twice ${twice}, unexpected ${unexpected}, out of order ${outOfOrder}${describeLosses(tally)}; ` +
        `one owner each within ${JSON.stringify(slowest)} ms; ${testCluster.calls} calls in flight to nodes that died, the slowest known after ${Math.round(testCluster.slowestCall)} ms; ` +
        `while ${title} restarted, ${outage.local.length} requests for devices of the same node, ${outage.harmed.length} harmed, half within ${quantile(outage.local, 0.5).toFixed(1)} ms, 99 % within ${Math.round(quantile(outage.local, 0.99))} ms, ` +
        `the slowest after ${Math.round(Math.max(...outage.local))} ms; for devices of others ${JSON.stringify(outage.statuses)}, half of the 503 within ` +
        `${quantile(outage.refusals, 0.5).toFixed(1)} ms, 99 % within ${quantile(outage.refusals, 0.99).toFixed(1)} ms`,
      wrong: verdict.wrong
    }
  } finally {
    await testCluster.stop()
  }
}

/** Rejects with the name of work that does not end. */
async function withTimeout<T> (work: Promise<T>, what: string): Promise<T> {
  const late = new AbortController()
  const never = sleep(2 * TIMEOUT_MS, undefined, { signal: late.signal }).then(() => { throw new Error(`${what} never ended`) })
  try {
    return await Promise.race([work, never])
  } finally {
    late.abort()
    never.catch(() => {})
  }
}

/** Answers to callers while the engine was down, and shortly before and after. */
class OutageStats {
  /** Requests for devices of the same node. */
  readonly local: number[] = []
  /** Statuses of those that failed. */
  readonly harmed: number[] = []
  /** Number of answers by status, for devices of other nodes. */
  readonly statuses: Record<number, number> = {}
  /** Milliseconds until a 503. */
  readonly refusals: number[] = []

  addLocal (status: number, took: number): void {
    this.local.push(took)
    if (status !== 200) this.harmed.push(status)
  }

  addRemote (status: number, took: number): void {
    this.statuses[status] = (this.statuses[status] ?? 0) + 1
    if (status === 503) this.refusals.push(took)
  }
}

/** The status of an answer; 0 without one. */
async function statusOf (asked: Promise<Response>): Promise<number> {
  try {
    const response = await asked
    await response.arrayBuffer()
    return response.status
  } catch {
    return 0
  }
}

function quantile (figures: number[], share: number): number {
  return figures.toSorted((a, b) => a - b)[Math.ceil(figures.length * share) - 1] ?? NaN
}

class TestCluster {
  readonly engine: JoiningEngine
  readonly #balancer: Balancer
  readonly #hosts = new Map<string, Host>()
  #devices: LetterDevice[] = []
  #agreement!: Agreement
  readonly #stoppedHosts: Host[] = []
  readonly lossWindows = new LossWindows()
  calls = 0
  slowestCall = 0

  private constructor (engine: JoiningEngine, balancer: Balancer) {
    this.engine = engine
    this.#balancer = balancer
  }

  static async build ({ devices: count, ...choice }: EngineChoice & { devices: number }): Promise<TestCluster> {
    const testCluster = new TestCluster(await startJoiningEngine(choice), await Balancer.start())
    for (const name of NODES) await testCluster.#startNode(name)
    testCluster.#devices = Array.from({ length: count }, (_, at) => new LetterDevice(`device-${at}`, testCluster.#balancer.url))
    testCluster.#agreement = new Agreement(() => testCluster.#hosts, count)
    return testCluster
  }

  get faults (): string[] {
    return [...this.#hosts.values(), ...this.#stoppedHosts].flatMap(({ faults }) => faults)
  }

  flow (): LetterFlow {
    return new LetterFlow(this.#devices, () => this.#balancer.urls)
  }

  /** Kills a node while calls from another node to its devices are in flight. */
  async kill (at: number, verdict: Verdict): Promise<Fault> {
    const name = NODES[at % NODES.length]!
    const host = this.#hosts.get(name)!
    const held = ((await host.ask('held')) as Array<[string, number]>).slice(0, HANGING_CALLS).map(([id]) => id)
    const elsewhere = this.#balancer.urls.find(url => url !== host.url)!
    const calls = held.map(id => fetch(`${elsewhere}/devices/${id}/calls/hang?timeout=${CALL_TIMEOUT_MS / 1_000}`, { method: 'POST' }))
    await sleep(OUTAGE_MS) // until they have reached the devices
    const died = performance.now()
    this.#balancer.remove(name)
    this.#hosts.delete(name)
    this.#stoppedHosts.push(host)
    host.signal('SIGKILL')
    await host.ended
    const known = this.#verifyLostCalls(calls, died, verdict)
    return { at: died, end: () => known }
  }

  /** Verifies that each call in flight to the killed node fails in time. */
  async #verifyLostCalls (calls: Array<Promise<Response>>, died: number, verdict: Verdict): Promise<void> {
    const statuses = await Promise.all(calls.map(async call => (await call).status))
    this.calls += statuses.length
    this.slowestCall = Math.max(this.slowestCall, performance.now() - died)
    verdict.within('milliseconds until a call to a node that died is known to be lost', performance.now() - died, LOST_TIMEOUT_MS)
    verdict.same('answers to calls to a node that died', statuses.filter(status => status !== 502 && status !== 404), [])
  }

  async pause (at: number, milliseconds: number): Promise<Fault> {
    const name = NODES[at % NODES.length]!
    const host = this.#hosts.get(name)!
    host.signal('SIGSTOP')
    this.#balancer.remove(name)
    await sleep(milliseconds)
    host.signal('SIGCONT')
    this.#balancer.add(name, host.url)
    return { at: performance.now(), end: async () => {} }
  }

  /** Restarts the engine while callers send requests to devices of the same node and of others. */
  async restart (at: number, outage: OutageStats): Promise<Fault> {
    const traffic = await this.#traffic(outage)
    const signal = at % 2 === 0 ? 'SIGTERM' : 'SIGKILL'
    const began = performance.now()
    await this.engine.server.stop(signal)
    if (signal === 'SIGKILL') this.lossWindows.addKill(began, this.engine.lossWindow)
    await sleep(OUTAGE_MS)
    await this.engine.server.start()
    return { at: performance.now(), end: traffic.stop }
  }

  /** Two callers per node: one for its own devices, one for those of the next node. */
  async #traffic (outage: OutageStats): Promise<{ stop: () => Promise<void> }> {
    const stopping = new AbortController()
    const hosts = [...this.#hosts.values()]
    const held = await Promise.all(hosts.map(async host => ((await host.ask('held')) as Array<[string, number]>).map(([id]) => id)))
    const ask = async (host: Host, ids: string[], told: (status: number, took: number) => void) => {
      for (let turn = 0; !stopping.signal.aborted && ids.length > 0; turn++) {
        const path = `/devices/${ids[turn % ids.length]}/${turn % 2 === 0 ? 'calls/echo' : 'messages'}`
        const began = performance.now()
        const status = await statusOf(fetch(host.url + path, {
          method: 'POST', body: EMPTY_BODY, headers: { 'content-type': 'application/json' }, signal: AbortSignal.timeout(TIMEOUT_MS)
        }))
        told(status, performance.now() - began)
        await sleep(TRAFFIC_INTERVAL_MS)
      }
    }
    const asking = Promise.all(hosts.flatMap((host, at) => [
      ask(host, held[at]!, (status, took) => outage.addLocal(status, took)),
      ask(host, held[(at + 1) % hosts.length]!, (status, took) => outage.addRemote(status, took))
    ]))
    return {
      stop: async () => {
        stopping.abort()
        await asking
      }
    }
  }

  /** Closes a node, which tells its devices to reconnect. */
  async leave (at: number, verdict: Verdict): Promise<Fault> {
    const name = NODES[at % NODES.length]!
    const host = this.#hosts.get(name)!
    this.#balancer.remove(name)
    this.#hosts.delete(name)
    const exit = await Promise.race([host.stop(), sleep(TIMEOUT_MS, 'it never ended', { ref: false })])
    verdict.same('exit of a node that leaves', exit, { code: 0, signal: null })
    host.signal('SIGKILL')
    this.#stoppedHosts.push(host)
    return { at: performance.now(), end: async () => {} }
  }

  /** Starts the nodes that are not running. */
  async restartNodes (): Promise<void> {
    for (const name of NODES) if (!this.#hosts.has(name)) await this.#startNode(name)
  }

  /** Resolves, once all nodes agree, with the milliseconds from `began` until each device had one owner. */
  async settled (began: number): Promise<number> {
    return await this.#agreement.settled(began)
  }

  /** Number of devices that a publication reaches, once reconnected devices have subscribed again. */
  async broadcast (): Promise<number> {
    let sent = 0
    for (const until = performance.now() + TIMEOUT_MS; performance.now() < until && sent !== this.#devices.length; await sleep(POLL_INTERVAL_MS)) {
      const response = await fetch(`${this.#balancer.urls[0]}/broadcast?topic=${TOPIC}`, { method: 'POST', body: '0', headers: { 'content-type': 'application/json' } })
      if (response.ok) sent = (await response.json() as { sent: number }).sent
      if (sent > this.#devices.length) break
    }
    return sent
  }

  get stoppedDevices (): number {
    return this.#devices.filter(({ client }) => client.status.state === 'stopped').length
  }

  async stop (): Promise<void> {
    for (const { client } of this.#devices) client.close()
    for (const host of this.#hosts.values()) host.signal('SIGKILL')
    await Promise.all([...this.#hosts.values()].map(({ ended }) => ended))
    this.#balancer.close()
    await this.engine.remove()
  }

  async #startNode (name: string): Promise<void> {
    const host = await Host.start(import.meta.url, { name, access: this.engine.access })
    this.#hosts.set(name, host)
    this.#balancer.add(name, host.url)
  }
}

// One node.

/** Sets up a node for `Agreement`. */
export async function prepareNode ({ name, access }: { name: string, access: EngineAccess }): Promise<HostedApp> {
  const app = quietApp()
  await app.register(devices, { node: name, ...await openEngine(access), pingInterval: 2_500, pongTimeout: 5_000, retrySpread: 500 })
  const commands = {
    held: () => [...app.devices].map(({ id, generation }) => [id, generation]),
    async listed () {
      const all = await app.devices.list({ limit: 100_000 })
      return all.map(({ deviceId, node, generation }) => [deviceId, `${node} ${generation}`])
    }
  }
  return { app, commands }
}

await command(import.meta.url, { devices: 1_000, kills: 20, pauses: 20, pause: 10_000, restarts: 20, leaves: 6, within: 2_000, slow: 2_000, refused: 100, engine: 'nats', fsync: 'always' }, cluster, prepareNode)
