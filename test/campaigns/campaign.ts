import { realpathSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { serve, type HostSetup } from './host.ts'

export { seededRandom } from './seeded-random.ts'

/** The result of a campaign: its figures in one line, and all violations. */
export interface Outcome {
  line: string
  wrong: string[]
}

const MAX_DURATION_MS = 60 * 60_000
const SETTLE_TIMEOUT_MS = 10_000
const POLL_INTERVAL_MS = 10

/** Collects violations, so that a campaign reports all of them and not only the first. */
export class Verdict {
  readonly wrong: string[] = []

  same (what: string, actual: unknown, wanted: unknown): void {
    const [is, must] = [JSON.stringify(actual), JSON.stringify(wanted)]
    if (is !== must) this.wrong.push(`${what}: ${is}, and must be ${must}`)
  }

  within (what: string, actual: number, limit: number): void {
    if (!(actual <= limit)) this.wrong.push(`${what}: ${actual}, and must be at most ${limit}`)
  }

  holds (what: string, is: boolean): void {
    if (!is) this.wrong.push(what)
  }
}

/** Runs `count` tasks, started in the order of their numbers, at most `width` at a time. */
export async function lanes (count: number, width: number, task: (number: number) => Promise<void>): Promise<void> {
  let next = 0
  const lane = async () => {
    while (next < count) await task(next++)
  }
  await Promise.all(Array.from({ length: Math.min(width, count) }, lane))
}

/** Polls `look` until it returns `wanted`; after the timeout, resolves with its last value. */
export async function settled<T> (look: () => Promise<T>, wanted: T, within = SETTLE_TIMEOUT_MS): Promise<T> {
  const until = Date.now() + within
  for (;;) {
    const seen = await look()
    if (Date.now() > until || JSON.stringify(seen) === JSON.stringify(wanted)) return seen
    await sleep(POLL_INTERVAL_MS)
  }
}

/**
 * The command line of a campaign: `--name value` for each of its sizes, a number unless its default is text. A host forks the same file as its server.
 * Where the file is imported, this does nothing.
 */
export async function command<Size extends Record<string, number | string>> (
  url: string, size: Size, campaign: (size: Size) => Promise<Outcome>, prepare?: HostSetup
): Promise<void> {
  if (realpathSync(process.argv[1] ?? '.') !== fileURLToPath(url)) return
  if (prepare && process.send && process.argv[2] === 'serve') return await serve(prepare)

  setTimeout(() => process.exit(2), MAX_DURATION_MS).unref()
  const { line, wrong } = await campaign(sizeOf(size))
  console.log(line)
  for (const what of wrong) console.log(`  wrong: ${what}`)
  process.exitCode = wrong.length === 0 ? 0 : 1
}

function sizeOf<Size extends Record<string, number | string>> (size: Size): Size {
  const options = Object.fromEntries(Object.entries(size).map(([name, value]) => [name, { type: 'string' as const, default: String(value) }]))
  const { values } = parseArgs({ options })
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, typeof size[name] === 'number' ? Number(value) : value])) as Size
}
