import { readdirSync, readFileSync } from 'node:fs'

/** What a while has cost, in microseconds. */
export interface Usage {
  /** CPU time of the server, system and all threads included. */
  cpu: number
  /** The same of what carries messages between its processes; 0 where there is no such thing. */
  brokerCpu: number
  /** Time on the clock. */
  wall: number
  /** How long the busiest thread of the server, and of the load side, had something to do: it ran, or waited for a core. */
  server: number
  load: number
}

/** What is measured: the processes of a server, and what carries messages between them. */
export interface Metered {
  pids: number[]
  broker?: number | undefined
}

/** Resident bytes of a process. */
export function residentBytes (pid: number): number {
  const [, kilobytes] = readFileSync(`/proc/${pid}/status`, 'latin1').match(/VmRSS:\s+(\d+)/)!
  return Number(kilobytes) * 1_024
}

interface Thread {
  runTime: number
  waitTime: number
}

/** Microseconds that each thread of some processes has run, and waited for a core: what `/proc/<pid>/stat` has, in finer grains. */
function threadsOf (pids: number[]): Map<string, Thread> {
  return new Map(pids.flatMap(pid => readdirSync(`/proc/${pid}/task`).map(thread => {
    const [ran, waited] = readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'latin1').split(' ')
    return [thread, { runTime: Number(ran) / 1_000, waitTime: Number(waited) / 1_000 }] as const
  })))
}

/** What each thread has run and waited since. */
function usedSince (before: Map<string, Thread>, pids: number[]): Thread[] {
  return [...threadsOf(pids)].map(([thread, { runTime, waitTime }]) => {
    const then = before.get(thread) ?? { runTime: 0, waitTime: 0 }
    return { runTime: runTime - then.runTime, waitTime: waitTime - then.waitTime }
  })
}

/** On a machine with other work, too, this tells who was the limit. */
function busiest (threads: Thread[]): number {
  return Math.max(...threads.map(({ runTime, waitTime }) => runTime + waitTime))
}

/** Starts the clocks; the load side is the process that asks. */
export function meter ({ pids, broker }: Metered): () => Usage {
  const [load, brokers] = [[process.pid], broker === undefined ? [] : [broker]]
  const before = { wall: performance.now(), server: threadsOf(pids), brokers: threadsOf(brokers), load: threadsOf(load) }
  return () => {
    const wall = (performance.now() - before.wall) * 1_000
    const threads = usedSince(before.server, pids)
    return { cpu: runTimeOf(threads), brokerCpu: runTimeOf(usedSince(before.brokers, brokers)), wall, server: busiest(threads), load: busiest(usedSince(before.load, load)) }
  }
}

function runTimeOf (threads: Thread[]): number {
  return threads.reduce((sum, { runTime }) => sum + runTime, 0)
}
