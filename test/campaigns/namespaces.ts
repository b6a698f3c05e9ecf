import { execFileSync, fork, spawnSync } from 'node:child_process'
import { existsSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { programAt } from '../programs.ts'

/** A message of a confined module: a line of progress, or its result, after which it is killed. */
type ConfinedMessage = { line: string } | { result: unknown }

const PROGRAMS = { unshare: 'util-linux', ip: 'iproute2', nft: 'nftables' }
/** Namespaces for network, processes and mounts. The kernel removes them when their first process ends. */
const CONFINEMENT = ['--mount', '--net', '--pid', '--fork', '--kill-child', '--mount-proc']
/** A tmpfs, so that nothing is written to the disk of this machine. */
const SCRATCH = '/run'
const BRIDGE = 'bridge'
const SUBNET = '10.77.0'
/** TCP doubles the time between retransmissions, so after a cut of 10 s it may be silent for 10 s more. Kernels since 6.15 have a limit for this. */
const RETRY_BOUND = '/proc/sys/net/ipv4/tcp_rto_max_ms'
const RETRY_BOUND_MS = 1_000

/** Why this machine cannot create network namespaces; undefined if it can. */
export function namespacesRefused (): string | undefined {
  const missing = Object.entries(PROGRAMS).filter(([program]) => !programAt(program))
  if (missing.length > 0) return `needs ${missing.map(([program]) => program).join(', ')} (Debian: apt-get install ${missing.map(([, name]) => name).join(' ')})`
  const [program, ...args] = confinement()
  const { status } = spawnSync(program!, [...args, 'sh', '-c', `mount -t tmpfs tmpfs ${SCRATCH} && ip netns add ${BRIDGE}`])
  return status === 0 ? undefined : 'needs network namespaces, which this machine does not permit'
}

/**
 * Runs a module in namespaces of its own; the module calls `enterConfinement`. Resolves with its result. No process, interface or file
 * remains afterwards, however the module or this process ends.
 */
export async function confined<Result> (module: string, settings: object, watch: (line: string) => void): Promise<Result> {
  const [execPath, ...execArgv] = [...confinement(), process.execPath, ...process.execArgv]
  const child = fork(fileURLToPath(module), ['confined', JSON.stringify(settings)], {
    execPath: execPath!, execArgv, env: { ...process.env, TMPDIR: SCRATCH }
  })
  const end = () => { child.kill('SIGKILL') }
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, end)
  process.once('exit', end)
  try {
    return await new Promise((resolve, reject) => {
      let result: Result | undefined
      child.on('message', (word: ConfinedMessage) => {
        if ('line' in word) return watch(word.line)
        result = word.result as Result
        end()
      })
      child.once('exit', (code, signal) => result === undefined ? reject(new Error(`It ended early, with ${code ?? signal}`)) : resolve(result))
    })
  } finally {
    for (const event of ['SIGINT', 'SIGTERM', 'exit']) process.off(event, end)
  }
}

/** In the module that `confined` runs: runs the function and sends its result. Does nothing elsewhere. */
export async function enterConfinement<Settings> (run: (settings: Settings, tell: (line: string) => void) => Promise<unknown>): Promise<void> {
  if (process.argv[2] !== 'confined' || !process.send) return
  process.once('disconnect', () => process.exit(1))
  execFileSync('mount', ['-t', 'tmpfs', 'tmpfs', SCRATCH])
  const say = (word: ConfinedMessage) => process.send!(word)
  say({ result: await run(JSON.parse(process.argv[3]!), line => say({ line })) })
}

/** Network namespaces joined by a bridge; this process is in one of them. For confined modules only. */
export class Network {
  readonly #addresses = new Map<string, string>()
  /** For each host, the percentage of packets dropped, by source address. */
  readonly #dropped = new Map<string, Map<string, number>>()

  constructor (names: string[]) {
    ip('netns', 'add', BRIDGE)
    ip('-n', BRIDGE, 'link', 'add', 'br0', 'type', 'bridge')
    ip('-n', BRIDGE, 'link', 'set', 'br0', 'up')
    this.#join('here', `${SUBNET}.1`)
    for (const [at, name] of names.entries()) {
      ip('netns', 'add', name)
      this.#join(name, `${SUBNET}.${at + 11}`, name)
      this.#dropped.set(name, new Map())
    }
  }

  /** The command prefix that runs a program on a host. */
  static on (name: string): string[] {
    return [programAt('ip')!, 'netns', 'exec', name]
  }

  address (name: string): string {
    return this.#addresses.get(name)!
  }

  /** Drops a percentage of the packets from one host to another. */
  drop (from: string, to: string, percent = 100): void {
    this.#dropped.get(to)!.set(this.address(from), percent)
    this.#filter(to)
  }

  /** Removes all packet loss. */
  heal (): void {
    for (const [name, dropped] of this.#dropped) {
      if (dropped.size === 0) continue
      dropped.clear()
      this.#filter(name)
    }
  }

  #join (name: string, address: string, namespace?: string): void {
    const inside = namespace === undefined ? [] : ['-n', namespace]
    ip('link', 'add', name, 'type', 'veth', 'peer', 'name', 'eth0', ...(namespace === undefined ? [] : ['netns', namespace]))
    ip('link', 'set', 'dev', name, 'netns', BRIDGE)
    ip('-n', BRIDGE, 'link', 'set', 'dev', name, 'master', 'br0', 'up')
    ip(...inside, 'addr', 'add', `${address}/24`, 'dev', 'eth0')
    for (const device of ['lo', 'eth0']) ip(...inside, 'link', 'set', 'dev', device, 'up')
    if (existsSync(RETRY_BOUND)) {
      if (namespace === undefined) writeFileSync(RETRY_BOUND, String(RETRY_BOUND_MS))
      else ip('netns', 'exec', namespace, 'sh', '-c', `echo ${RETRY_BOUND_MS} > ${RETRY_BOUND}`)
    }
    this.#addresses.set(name, address)
  }

  #filter (name: string): void {
    const rules = [...this.#dropped.get(name)!].map(([address, percent]) =>
      `ip saddr ${address} ${percent < 100 ? `numgen random mod 100 < ${percent} ` : ''}drop`)
    const table = ['table ip faults', 'delete table ip faults', 'table ip faults {', 'chain arriving {', 'type filter hook input priority 0', ...rules, '}', '}']
    const [program, ...args] = Network.on(name)
    execFileSync(program!, [...args, programAt('nft')!, '-f', '-'], { input: `${table.join('\n')}\n` })
  }
}

function confinement (): string[] {
  const asRoot = process.getuid!() === 0 ? [] : ['--user', '--map-root-user']
  return [programAt('unshare')!, ...asRoot, ...CONFINEMENT]
}

function ip (...args: string[]): void {
  execFileSync(programAt('ip')!, args)
}
