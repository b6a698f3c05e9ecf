import { setTimeout as sleep } from 'node:timers/promises'
import { lanes } from './campaign.ts'
import { sumOf, tallyOf, type LetterTally } from './letter-tally.ts'
import type { LossWindows } from './loss-windows.ts'
import type { Callers } from './partition-callers.ts'
import type { Device } from './partition-device.ts'
import { NODES } from './partition-engine.ts'
import type { Site } from './partition-site.ts'

const TRUE_TIMEOUT_MS = 10_000
const POLL_INTERVAL_MS = 300
const PAGE = 100
const WIDTH = 12
const ARRIVAL_TIMEOUT_MS = 3_000
const DUPLICATE_WAIT_MS = 300
const EMPTY_TIMEOUT_MS = 15_000
const MAX_NAMED = 4

/** Compares what the nodes report with what the devices know. */
export class Judge {
  readonly #site: Site
  readonly #devices: Device[]
  readonly #callers: Callers
  /** Milliseconds for which it keeps polling after a violation, to report how long it lasted. */
  readonly #patience: number
  /** Violations already reported, and the lengths already reported of the lists that only grow. */
  readonly #reported = new Set<string>()
  readonly #lengths = new Map<string, number>()

  constructor (site: Site, devices: Device[], callers: Callers, patience: number) {
    this.#patience = patience
    this.#site = site
    this.#devices = devices
    this.#callers = callers
  }

  /** Resolves with the violations after a fault, and the milliseconds until all lists were correct. */
  async afterFault (): Promise<{ wrong: string[], took: number }> {
    const wrong = await this.news()
    const began = performance.now()
    let found: string[] = []
    let early: string[] | undefined
    let took = Infinity
    while (performance.now() - began < this.#patience) {
      found = await this.#untrue()
      took = performance.now() - began
      if (found.length === 0) break
      if (took > TRUE_TIMEOUT_MS) early ??= found
      await sleep(POLL_INTERVAL_MS)
    }
    if (took > TRUE_TIMEOUT_MS) {
      wrong.push(...early ?? found)
      wrong.push(found.length === 0 ? `true only after ${Math.round(took)} ms` : `still so after ${this.#patience} ms: ${found.join('; ')}`)
    }
    wrong.push(...await this.#broadcast(), ...await this.news())
    return { wrong, took }
  }

  /** Resolves with the violations once acknowledged letters have had time to arrive. */
  async afterAll (): Promise<string[]> {
    for (const until = performance.now() + this.#patience; this.#undelivered().length > 0 && performance.now() < until;) await sleep(POLL_INTERVAL_MS)
    const undelivered = await Promise.all(this.#undelivered().map(async ({ device, number, id }) => {
      const { outcome } = await this.#callers.ask({ kind: 'receipt', node: NODES[0]!, method: 'GET', path: `/devices/${device.id}/messages/${encodeURIComponent(id)}` })
      return `${device.id}/${number}: ${outcome}`
    }))
    return [...some('letters acknowledged to their sender and never seen', undelivered), ...await this.news()]
  }

  /** What became of all letters. */
  tally (): LetterTally {
    const windows = this.#site.engine.losses()
    return sumOf(this.#devices.map(device => tallyOf(this.#callers.posts.get(device)!.attempts, device.seen.letters, windows)))
  }

  /** Once all devices are closed: resolves with the state that remains. */
  async leftOver (): Promise<string[]> {
    const look = async () => {
      const listed = await Promise.all(NODES.map(async node => ({ node, entries: await this.#list(node) })))
      return [
        ...await this.#site.engine.leftOver(true),
        ...listed.filter(({ entries }) => entries?.length !== 0).map(({ node, entries }) => entries ? `${node} lists ${entries.length} devices when all are away` : `${node} gives no list`)
      ]
    }
    let left = await look()
    for (const until = performance.now() + EMPTY_TIMEOUT_MS; left.length > 0 && performance.now() < until; left = await look()) await sleep(POLL_INTERVAL_MS)
    return left
  }

  /** Violations since the last call. */
  async news (): Promise<string[]> {
    const windows = this.#site.engine.losses()
    const twice = this.#devices.flatMap(device => [
      ...this.#repeated(device, windows).map(number => `${device.id}/${number}`),
      ...[...device.seen.times].filter(([, count]) => count > 1).map(([name, count]) => `${name} ${count} times at ${device.id}`)
    ])
    const disordered = this.#devices.flatMap(({ id, seen: { letters } }) =>
      letters.filter((number, at) => at > 0 && number < letters[at - 1]! && letters.indexOf(number) === at).map(number => `${id}/${number}`))
    const unsent = this.#devices.flatMap(device => device.seen.letters.filter(number => number >= this.#callers.posts.get(device)!.attempts.length).map(number => `${device.id}/${number}`))
    const undone = [...this.#callers.done].filter(([name, device]) => !device.seen.times.has(name)).map(([name, { id }]) => `${name} at ${id}`)
    return [
      ...some('seen twice', this.#unreported('twice', twice)),
      ...some('letters out of order', this.#unreported('disordered', disordered)),
      ...some('letters that nobody sent', this.#unreported('unsent', unsent)),
      ...some('acknowledged and never seen', this.#unreported('undone', undone)),
      ...some('devices told not to come back', this.#added('stops', this.#devices.flatMap(({ stops }) => stops))),
      ...some('wrong answers', this.#added('answers', this.#callers.wrong)),
      ...this.#added('site', this.#site.wrong),
      ...this.#added('faults', this.#site.faults),
      ...this.#unreported('engine', this.#site.engine.wrong())
    ]
  }

  #added (kind: string, list: string[]): string[] {
    const told = this.#lengths.get(kind) ?? 0
    this.#lengths.set(kind, list.length)
    return list.slice(told)
  }

  #unreported (kind: string, all: string[]): string[] {
    const fresh = all.filter(one => !this.#reported.has(`${kind}: ${one}`))
    for (const one of fresh) this.#reported.add(`${kind}: ${one}`)
    return fresh
  }

  /** The letters that a device saw twice, except those that the engine may have forgotten before they were acknowledged. */
  #repeated (device: Device, windows: LossWindows): number[] {
    const { attempts } = this.#callers.posts.get(device)!
    const { letters } = device.seen
    return letters.filter((number, at) => letters.indexOf(number) < at && !(attempts[number] && windows.mayRepeat(attempts[number])))
  }

  /** Without those that the engine may lose. */
  #undelivered (): Array<{ device: Device, number: number, id: string }> {
    const windows = this.#site.engine.losses()
    return this.#devices.flatMap(device => {
      const seen = new Set(device.seen.letters)
      const { acknowledged, attempts } = this.#callers.posts.get(device)!
      return [...acknowledged].filter(([number]) => !seen.has(number) && !windows.mayLose(attempts[number]!)).map(([number, id]) => ({ device, number, id }))
    })
  }

  /** Errors in the lists of the nodes; once there are none, errors in what each node reports of each device. */
  async #untrue (): Promise<string[]> {
    const away = this.#devices.filter(({ at }) => at === undefined).map(({ id }) => id)
    const found = [...some('devices that are away', away)]
    for (const node of NODES) found.push(...await this.#untrueList(node))
    if (found.length === 0) for (const node of NODES) found.push(...await this.#untrueOwners(node))
    return found
  }

  async #untrueList (node: string): Promise<string[]> {
    const listed = await this.#list(node)
    if (!listed) return [`${node} gives no list`]
    const owners = new Map(listed)
    const ids = listed.map(([id]) => id)
    return [
      ...some(`${node} lists more than once`, ids.filter((id, at) => ids.indexOf(id) < at)),
      ...some(`${node} does not list`, this.#devices.filter(({ id, at }) => at !== undefined && !owners.has(id)).map(({ id, at }) => `${id} at ${at}`)),
      ...some(`${node} lists who is away`, this.#devices.filter(({ id, at }) => at === undefined && owners.has(id)).map(({ id }) => `${id} at ${owners.get(id)}`)),
      ...some(`${node} lists elsewhere`, this.#devices
        .filter(({ id, at }) => at !== undefined && owners.has(id) && owners.get(id) !== at)
        .map(({ id, at }) => `${id} at ${owners.get(id)}, is at ${at}`))
    ]
  }

  /** Errors in the owner that a node reports of each device. */
  async #untrueOwners (node: string): Promise<string[]> {
    const wrong: string[] = []
    await lanes(this.#devices.length, WIDTH, async number => {
      const device = this.#devices[number]!
      const { outcome, body } = await this.#callers.ask({ kind: 'describe', node, method: 'GET', path: `/devices/${device.id}` })
      if (body?.node !== device.at) wrong.push(`${device.id} at ${body?.node ?? outcome}, is at ${device.at}`)
    })
    return some(`${node} has as owner of`, wrong)
  }

  /** All pages of the list of a node. */
  async #list (node: string): Promise<Array<[id: string, node: string]> | undefined> {
    const all: Array<[string, string]> = []
    for (let cursor: string | undefined = ''; cursor !== undefined;) {
      const { outcome, body } = await this.#callers.ask({ kind: 'list', node, method: 'GET', path: `/devices?limit=${PAGE}${cursor && `&cursor=${cursor}`}` })
      if (outcome !== '200') return undefined
      for (const one of body.devices) all.push([one.deviceId, one.node])
      cursor = body.cursor
    }
    return all
  }

  /** Broadcasts a message; resolves with the devices that did not receive it exactly once. */
  async #broadcast (): Promise<string[]> {
    const here = this.#devices.filter(({ at }) => at !== undefined)
    const { node, once, answer } = await this.#callers.broadcast(false)
    if (answer.outcome !== '200') return [`a broadcast by ${node}: ${answer.outcome}`]
    const times = (device: Device) => device.seen.times.get(once) ?? 0
    for (const until = performance.now() + ARRIVAL_TIMEOUT_MS; here.some(device => times(device) === 0) && performance.now() < until;) await sleep(POLL_INTERVAL_MS)
    await sleep(DUPLICATE_WAIT_MS)
    return [
      ...some(`a broadcast by ${node} did not reach`, here.filter(device => times(device) === 0).map(({ id, at }) => `${id} at ${at}`)),
      ...some(`a broadcast by ${node} came more than once to`, here.filter(device => times(device) > 1).map(({ id }) => id)),
      ...(answer.body.sent === here.length ? [] : [`a broadcast by ${node} was handed to ${answer.body.sent} devices, and ${here.length} are connected`])
    ]
  }
}

/** Summarizes violations of a kind in one line. */
function some (what: string, all: string[]): string[] {
  if (all.length === 0) return []
  return [`${what}: ${all.length} (${all.slice(0, MAX_NAMED).join(', ')}${all.length > MAX_NAMED ? ', ...' : ''})`]
}
