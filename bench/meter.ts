import { readdirSync, readFileSync } from 'node:fs'

/** CPU and wall-clock time of an interval, in microseconds. */
export interface Usage {
  /** CPU time of the server: user and system, all threads. */
  cpu: number
  /** CPU time of the message broker between the nodes; 0 without one. */
  brokerCpu: number
  /** Wall-clock time. */
  wall: number
  /** Time in which the busiest thread of the server, and of the load generator, ran or waited for a core. */
  server: number
  load: number
}

/** The processes of a server, and of the message broker between them. */
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

/** Microseconds that each thread has run and has waited for a core. `schedstat` is finer than `/proc/<pid>/stat`. */
function threadsOf (pids: number[]): Map<string, Thread> {
  return new Map(pids.flatMap(pid => readdirSync(`/proc/${pid}/task`).map(thread => {
    const [ran, waited] = readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'latin1').split(' ')
    return [thread, { runTime: Number(ran) / 1_000, waitTime: Number(waited) / 1_000 }] as const
  })))
}

function usedSince (before: Map<string, Thread>, pids: number[]): Thread[] {
  return [...threadsOf(pids)].map(([thread, { runTime, waitTime }]) => {
    const then = before.get(thread) ?? { runTime: 0, waitTime: 0 }
    return { runTime: runTime - then.runTime, waitTime: waitTime - then.waitTime }
  })
}

/** Run time plus wait time shows which side was the limit, also on a machine with other load. */
function busiest (threads: Thread[]): number {
  return Math.max(...threads.map(({ runTime, waitTime }) => runTime + waitTime))
}

/** Starts a measurement. The load generator is the calling process. */
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
