import { readdirSync, readFileSync } from 'node:fs'

/** What a while has cost, in microseconds. */
export interface Spent {
  /** CPU time of the server, system and all threads included. */
  cpu: number
  /** The same of what carries messages between its processes; 0 where there is no such thing. */
  carrying: number
  /** Time on the clock. */
  wall: number
  /** How long the busiest thread of the server, and of the load side, had something to do: it ran, or waited for a core. */
  server: number
  load: number
}

/** What is measured: the processes of a server, and what carries messages between them. */
export interface Metered {
  pids: number[]
  carrier?: number | undefined
}

/** Resident bytes of a process. */
export function residentOf (pid: number): number {
  const [, kilobytes] = readFileSync(`/proc/${pid}/status`, 'latin1').match(/VmRSS:\s+(\d+)/)!
  return Number(kilobytes) * 1_024
}

interface Thread {
  ran: number
  waited: number
}

/** Microseconds that each thread of some processes has run, and waited for a core: what `/proc/<pid>/stat` has, in finer grains. */
function threadsOf (pids: number[]): Map<string, Thread> {
  return new Map(pids.flatMap(pid => readdirSync(`/proc/${pid}/task`).map(thread => {
    const [ran, waited] = readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'latin1').split(' ')
    return [thread, { ran: Number(ran) / 1_000, waited: Number(waited) / 1_000 }] as const
  })))
}

/** What each thread has run and waited since. */
function since (before: Map<string, Thread>, pids: number[]): Thread[] {
  return [...threadsOf(pids)].map(([thread, { ran, waited }]) => {
    const then = before.get(thread) ?? { ran: 0, waited: 0 }
    return { ran: ran - then.ran, waited: waited - then.waited }
  })
}

/** On a machine with other work, too, this tells who was the limit. */
function busiest (threads: Thread[]): number {
  return Math.max(...threads.map(({ ran, waited }) => ran + waited))
}

/** Starts the clocks; the load side is the process that asks. */
export function meter ({ pids, carrier }: Metered): () => Spent {
  const [load, carriers] = [[process.pid], carrier === undefined ? [] : [carrier]]
  const before = { wall: performance.now(), server: threadsOf(pids), carriers: threadsOf(carriers), load: threadsOf(load) }
  return () => {
    const wall = (performance.now() - before.wall) * 1_000
    const threads = since(before.server, pids)
    return { cpu: ranOf(threads), carrying: ranOf(since(before.carriers, carriers)), wall, server: busiest(threads), load: busiest(since(before.load, load)) }
  }
}

function ranOf (threads: Thread[]): number {
  return threads.reduce((sum, { ran }) => sum + ran, 0)
}
