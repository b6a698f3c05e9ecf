import { readdirSync, statSync, truncateSync } from 'node:fs'
import { join } from 'node:path'
import type { RedisServer } from './redis.ts'

const SAMPLE_INTERVAL_MS = 50
const SYNC_INTERVAL_MS = 1_000

/**
 * A Redis server with `appendfsync everysec` on a machine that loses its power. A killed process loses nothing, because the system has what it wrote; so a
 * kill also cuts the append-only file to the size that it had a second before.
 */
export class UnpluggedRedis {
  readonly #server: RedisServer
  #samples: Array<{ at: number, file: string, size: number }> = []
  readonly #timer = setInterval(() => this.#sample(), SAMPLE_INTERVAL_MS)

  constructor (server: RedisServer) {
    this.#server = server
  }

  async start (): Promise<void> {
    await this.#server.start()
  }

  async stop (signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    const synced = performance.now() - SYNC_INTERVAL_MS
    await this.#server.stop(signal)
    if (signal === 'SIGKILL') this.#cut(synced)
    this.#samples = []
  }

  async hold (): Promise<void> {
    await this.#server.hold()
  }

  release (): void {
    this.#server.release()
  }

  async remove (): Promise<void> {
    clearInterval(this.#timer)
    await this.#server.remove()
  }

  /** Cuts off what was written later than `from`. */
  #cut (from: number): void {
    const sample = this.#samples.find(({ at }) => at >= from)
    if (sample && sample.file === this.#file()) truncateSync(sample.file, sample.size)
  }

  #sample (): void {
    const file = this.#file()
    if (file === undefined) return
    const now = performance.now()
    this.#samples.push({ at: now, file, size: statSync(file).size })
    while (this.#samples.length > 1 && this.#samples[1]!.at < now - 2 * SYNC_INTERVAL_MS) this.#samples.shift()
  }

  /** The part of the append-only file that grows now. */
  #file (): string | undefined {
    const folder = join(this.#server.folder, 'appendonlydir')
    const name = readdirSync(folder).findLast(name => name.endsWith('.incr.aof'))
    return name === undefined ? undefined : join(folder, name)
  }
}
