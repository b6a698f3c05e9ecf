import { spawnSync } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import t from 'tap'
import { lanes } from './campaigns/campaign.ts'
import type { EngineAccess } from './campaigns/engine.ts'
import { Host } from './campaigns/host.ts'
import { withProgram } from './programs.ts'
import { root } from './root.ts'
import { request } from './support.ts'

/** A system call that succeeded: its file or socket, what went through it, and the lines of the trace where it began and returned. */
interface SystemCall {
  name: string
  target: string
  bytes: string
  began: number
  returned: number
}

const MESSAGES = 300
const WIDTH = 32
/** LevelDB cuts its log into blocks: what goes on in the next one has a header of its own there. */
const [BLOCK, HEADER] = [32_768, 7]
const traced = 'trace=read,readv,recvfrom,recvmsg,write,writev,pwrite64,sendto,sendmsg,fsync,fdatasync'
const [reading, writing, syncing] = [/^(read|recv)/, /^(p?write|send)/, /^(fsync|fdatasync)$/]
const gateway = pathToFileURL(join(root, 'dist/test/campaigns/kill.js')).href

withProgram(t, 'strace', 'between reading a message and answering 202, its letter is written and synced', async (t, strace) => {
  if (spawnSync(strace, ['-f', '-o', '/dev/null', 'true']).status !== 0) return t.plan(0, 'needs ptrace, which this machine does not permit')
  const folder = await mkdtemp(join(tmpdir(), 'synced-'))
  t.teardown(() => rm(folder, { recursive: true, force: true }))
  const [path, trace] = [join(folder, 'letters'), join(folder, 'trace')]
  const host = Host.load(gateway, [strace, '-f', '-y', '-xx', '--seccomp-bpf', '-s', '1000000', '-e', traced, '-o', trace])
  const ids: string[] = []
  const refused: number[] = []
  try {
    await host.begin({ engine: 'disk', path } satisfies EngineAccess)
    await lanes(MESSAGES, WIDTH, async number => {
      const content = { filler: 'x'.repeat(number), mark: `mark-${number}` }
      const { status, body } = await request(host, 'POST', `/devices/device-${number % WIDTH}/messages?ttl=60`, content)
      if (status !== 202) refused.push(status)
      ids[number] = body.id
    })
  } finally {
    await host.stop()
  }
  t.strictSame(refused, [])

  const calls = callsOf(await readFile(trace, 'latin1'))
  const sockets = calls.filter(({ target }) => target.startsWith('socket:'))
  const log = calls.filter(({ target }) => target.startsWith(path) && target.endsWith('.log'))
  t.equal(new Set(log.map(({ target }) => target)).size, 1, 'all letters are in one log')
  const writes = log.filter(({ name }) => writing.test(name))
  const { text, upTo } = textOf(writes)
  const unproven = ids.flatMap((id, number) => {
    const mark = `mark-${number}"}` // ends the letter
    const end = text.indexOf(mark) + mark.length
    const read = sockets.find(({ name, bytes }) => reading.test(name) && bytes.includes(mark))
    const write = text.includes(mark) ? writes[upTo.findIndex(length => length >= end)] : undefined
    const sync = write && log.find(({ name, began }) => syncing.test(name) && began > write.returned)
    const answer = sockets.find(({ name, bytes }) => writing.test(name) && bytes.includes(id))
    const steps = { read, write, sync, answer }
    return follow(Object.values(steps)) ? [] : [`message ${number}: ${told(steps)}`]
  })
  t.strictSame(unproven, [])
})

/** Each is there, and had returned before the next one began. */
function follow (steps: Array<SystemCall | undefined>): boolean {
  return steps.every((step, at) => step && (at === 0 || steps[at - 1]!.returned < step.began))
}

function told (steps: Record<string, SystemCall | undefined>): string {
  return Object.entries(steps).map(([name, call]) => call ? `${name} in lines ${call.began} to ${call.returned}` : `no ${name}`).join(', ')
}

/** A call that others came between began with its first half and returned with its second. */
function callsOf (trace: string): SystemCall[] {
  const calls: SystemCall[] = []
  const halves = new Map<string, { half: string, began: number }>()
  for (const [at, line] of trace.split('\n').entries()) {
    const [, thread = '', resumed, rest = '', unfinished] = /^(\d+) +(<\.\.\. \w+ resumed>)?(.*?)( <unfinished \.\.\.>)?$/.exec(line) ?? []
    const { half, began } = (resumed && halves.get(thread)) || { half: '', began: at }
    if (unfinished) halves.set(thread, { half: rest, began })
    else calls.push(...callOf(half + rest, began, at))
  }
  return calls
}

function callOf (text: string, began: number, returned: number): SystemCall[] {
  const [, name, target, rest, result] = /^(\w+)\(\d+<([^>]*)>(.*)\) += (\d+)$/.exec(text) ?? []
  if (name === undefined) return []
  const strings = [...rest!.matchAll(/"([^"]*)"/g)].map(([, hex]) => decoded(hex!))
  return [{ name, target: decoded(target!), bytes: strings.join('').slice(0, Number(result)), began, returned }]
}

/** `\x61\x62` is `ab`. */
function decoded (hex: string): string {
  return Buffer.from(hex.replaceAll('\\x', ''), 'hex').toString('latin1')
}

/** What was written to the log, without what cuts records in two, and how far each write has brought it. */
function textOf (writes: SystemCall[]): { text: string, upTo: number[] } {
  let [text, size] = ['', 0]
  const upTo = writes.map(({ bytes }) => {
    for (const byte of bytes) {
      if (size < BLOCK || size % BLOCK >= HEADER) text += byte
      size++
    }
    return text.length
  })
  return { text, upTo }
}
