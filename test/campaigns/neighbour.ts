import { execFileSync, fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { programAt } from '../programs.ts'

/** Reserved for benchmarks (RFC 2544), so no network uses it. */
const RANGE = '198.18'
const SUBNETS = 16_384

/** A process behind the other end of a virtual cable. */
export interface Neighbour {
  child: ChildProcess
  /** The address of this side of the cable. */
  here: string
  there: string
}

/**
 * Runs a module in a network namespace of its own, which a virtual cable joins to this one. The module begins with `enterNamespace`. The kernel
 * removes the namespace and the cable when the process ends, however it ends.
 */
export async function forkNeighbour (module: string): Promise<Neighbour> {
  const child = fork(fileURLToPath(module), ['neighbour'], { execPath: programAt('unshare')!, execArgv: ['--net', process.execPath, ...process.execArgv] })
  await Promise.race([once(child, 'message'), once(child, 'exit').then(() => { throw new Error('The neighbour ended before it began') })])
  const subnet = child.pid! % SUBNETS * 4
  const address = (host: number) => `${RANGE}.${subnet >> 8}.${(subnet & 0xff) + host}`
  const [here, there, name] = [address(1), address(2), `veth${child.pid}`]
  ip('link', 'add', name, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', String(child.pid))
  ip('addr', 'add', `${here}/30`, 'dev', name)
  ip('link', 'set', 'dev', name, 'up')
  child.send({ there })
  await once(child, 'message')
  return { child, here, there }
}

/** In the process of a neighbour: resolves once its address is set. */
export async function enterNamespace (): Promise<void> {
  process.once('disconnect', () => process.exit(1))
  process.send!('here')
  const [{ there }] = await once(process, 'message') as [{ there: string }]
  ip('addr', 'add', `${there}/30`, 'dev', 'eth0')
  for (const device of ['lo', 'eth0']) ip('link', 'set', 'dev', device, 'up')
  process.send!('ready')
}

function ip (...args: string[]): void {
  execFileSync(programAt('ip')!, args)
}
