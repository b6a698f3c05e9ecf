import { join } from 'node:path'
import { command, type Outcome } from './campaign.ts'
import { confined, namespacesRefused } from './namespaces.ts'
import { kindsOf } from './partition-faults.ts'
import type { RunSettings } from './partition-run.ts'

interface Size extends Record<string, number | string> {
  /** `nats` or `redis`. */
  engine: string
  devices: number
  faults: number
  seed: number
  /** Maximum milliseconds of a fault. */
  longest: number
  /** Milliseconds for which the judge keeps polling after a violation, to report how long it lasted. */
  patience: number
  /** Kinds of faults, separated by commas; by default all. */
  only: string
  /** A folder for the logs of the nodes and of the servers; without it they are lost with the namespaces. */
  logs: string
}

/**
 * Three nodes and three servers of an engine in network namespaces are partitioned, killed and paused while devices move and letters flow.
 * Devices receive what was sent, answers are as documented, and the lists of the nodes become correct after each fault.
 */
export async function partition ({ only, logs, ...size }: Size, watch: (line: string) => void = console.log): Promise<Outcome> {
  const refused = namespacesRefused()
  if (refused !== undefined) return { line: `partition: skipped, ${refused}`, wrong: [] }
  const kinds = kindsOf(size.engine)
  const chosen = only === '' ? kinds : only.split(',')
  const unknown = chosen.filter(kind => !kinds.includes(kind))
  if (unknown.length > 0) throw new Error(`There is no fault ${unknown.join(', ')}; there are ${kinds.join(', ')}`)
  const settings: RunSettings = { ...size, kinds: chosen, logs: logs === '' ? join('/run', 'logs') : logs }
  return await confined(new URL('./partition-run.js', import.meta.url).href, settings, watch)
}

await command(import.meta.url, { engine: 'nats', devices: 200, faults: 60, seed: Date.now() % 1_000_000, longest: 12_000, patience: 60_000, only: '', logs: '' }, partition)
