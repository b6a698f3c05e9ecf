import { readdirSync, readFileSync } from 'node:fs'

/** What a while has cost, in microseconds. */
export interface Spent {
  /** CPU time of the server, system and all threads included. */
  cpu: number
  /** Time on the clock. */
  wall: number
  /** How long the busiest thread of the server, and of the load side, had something to do: it ran, or waited for a core. */
  server: number
  load: number
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

/** Microseconds that each thread of a process has run, and waited for a core: what `/proc/<pid>/stat` has, in finer grains. */
function threadsOf (pid: number): Map<string, Thread> {
  return new Map(readdirSync(`/proc/${pid}/task`).map(thread => {
    const [ran, waited] = readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'latin1').split(' ')
    return [thread, { ran: Number(ran) / 1_000, waited: Number(waited) / 1_000 }]
  }))
}

/** What each thread has run and waited since. */
function since (before: Map<string, Thread>, pid: number): Thread[] {
  return [...threadsOf(pid)].map(([thread, { ran, waited }]) => {
    const then = before.get(thread) ?? { ran: 0, waited: 0 }
    return { ran: ran - then.ran, waited: waited - then.waited }
  })
}

/** On a machine with other work, too, this tells who was the limit. */
function busiest (threads: Thread[]): number {
  return Math.max(...threads.map(({ ran, waited }) => ran + waited))
}

/** Starts the clocks; the load side is the process that asks. */
export function meter (server: number): () => Spent {
  const before = { wall: performance.now(), server: threadsOf(server), load: threadsOf(process.pid) }
  return () => {
    const wall = (performance.now() - before.wall) * 1_000
    const threads = since(before.server, server)
    return { cpu: threads.reduce((sum, { ran }) => sum + ran, 0), wall, server: busiest(threads), load: busiest(since(before.load, process.pid)) }
  }
}
