#!/usr/bin/env node
import { setMaxListeners } from 'node:events'
import { run } from './program.ts'

const { argv, stdin, stdout, stderr, env } = process
const interruption = new AbortController()
setMaxListeners(0, interruption.signal) // each output that a pipe has not taken yet adds one
const signals = ['SIGINT', 'SIGTERM'] as const
for (const name of signals) process.on(name, interrupt)
// `process.exit` would cut output that a pipe has not taken yet.
process.exitCode = await run(argv.slice(2), { stdin, stdout, stderr, env, signal: interruption.signal })
// What was interrupted may have left anything open. A gateway that was closed has not: its code is 0.
if (interruption.signal.aborted && process.exitCode !== 0) process.exit()

/** Only once: if the program does not end, a second signal kills it. */
function interrupt (name: NodeJS.Signals): void {
  for (const signal of signals) process.off(signal, interrupt)
  interruption.abort(name)
}
