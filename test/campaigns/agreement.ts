import { setTimeout as sleep } from 'node:timers/promises'
import type { Host } from './host.ts'

const POLL_INTERVAL_MS = 50
const TIMEOUT_MS = 60_000

/** What nodes report of their devices. Their hosts have the commands `held` and `listed`. */
export class Agreement {
  readonly #hosts: () => Map<string, Host>
  readonly #devices: number
  /** The highest generation of each device so far. */
  readonly #generations = new Map<string, number>()
  /** Devices whose generation fell. */
  readonly fallen = new Set<string>()

  constructor (hosts: () => Map<string, Host>, devices: number) {
    this.#hosts = hosts
    this.#devices = devices
  }

  /** Resolves, once all nodes agree, with the milliseconds from `began` until each device had one owner. */
  async settled (began: number): Promise<number> {
    const until = performance.now() + TIMEOUT_MS
    let took = Infinity
    for (let agreed = false; !agreed && performance.now() < until; agreed = await this.#isAgreed(await this.#owners())) {
      while ((await this.#owners()).size === 0 && performance.now() < until) await sleep(POLL_INTERVAL_MS)
      took = performance.now() - began
    }
    return performance.now() < until ? took : Infinity
  }

  /** Each device with its owner, from the sessions of each node; empty unless each device has exactly one owner. */
  async #owners (): Promise<Map<string, string>> {
    const owners = new Map<string, string>()
    let held = 0
    for (const [name, host] of this.#hosts()) {
      for (const [id, generation] of await host.ask('held') as Array<[string, number]>) {
        owners.set(id, `${name} ${generation}`)
        this.#note(id, generation)
        held++
      }
    }
    return owners.size === held && held === this.#devices ? owners : new Map()
  }

  async #isAgreed (owners: Map<string, string>): Promise<boolean> {
    for (const host of this.#hosts().values()) {
      const listed = await host.ask('listed').catch(() => []) as Array<[string, string]>
      if (listed.length !== owners.size || listed.some(([id, owner]) => owners.get(id) !== owner)) return false
    }
    return true
  }

  #note (id: string, generation: number): void {
    const highest = this.#generations.get(id) ?? 0
    if (generation < highest) this.fallen.add(id)
    else this.#generations.set(id, generation)
  }
}
