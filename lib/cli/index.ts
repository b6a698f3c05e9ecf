#!/usr/bin/env node
import { run } from './program.ts'

const { argv, stdin, stdout, stderr, env } = process
const interruption = new AbortController()
// Only once each: if the program does not end, a second Ctrl-C kills it.
for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => interruption.abort(name))
// `process.exit` would cut output that a pipe has not taken yet.
process.exitCode = await run(argv.slice(2), { stdin, stdout, stderr, env, signal: interruption.signal })
