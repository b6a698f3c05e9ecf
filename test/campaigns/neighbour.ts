import { execFileSync, fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { programAt } from '../programs.ts'

/** Kept for measurements between networks (RFC 2544): it is nobody's. */
const RANGE = '198.18'
const SUBNETS = 16_384

/** Two ends of a cable, and a process behind the other one. */
export interface Neighbour {
  child: ChildProcess
  /** Our address, as the other side sees it. */
  here: string
  there: string
}

/**
 * Runs a module in a network namespace of its own, joined to ours by a cable; it begins with `enterNamespace`. The namespace ends with the
 * process, and the cable with the namespace, however that comes about.
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

/** In the process of a neighbour: it has the address once this resolves. */
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
