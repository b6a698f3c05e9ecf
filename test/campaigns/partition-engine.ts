import type { EngineAccess, EngineServer } from './engine.ts'
import type { LossWindows } from './loss-windows.ts'

/** The servers of a partition campaign, one in each of the namespaces `SERVERS`. */
export interface PartitionEngine {
  /** Its name in outputs. */
  readonly title: string
  server (name: string): EngineServer
  /** How a node reaches the servers. */
  access (node: string): EngineAccess
  /** The server that a node uses now. */
  serverOf (node: string): Promise<string>
  /** A server to break. */
  pick (random: () => number): Promise<string>
  /** What is missing until all servers can be used. */
  unhealthy (): Promise<string[]>
  /** What devices have left behind, and nodes if none runs. */
  leftOver (hasNodes: boolean): Promise<string[]>
  /** What the servers report that must not be. */
  wrong (): string[]
  /** What else they report, for the line of the campaign. */
  figures (): string
  /** When the servers may lose what they acknowledge. */
  losses (): LossWindows
  /** Replaces the master, while all are well. */
  failover? (): Promise<void>
  remove (): Promise<void>
}

export const SERVERS = ['s1', 's2', 's3']
export const NODES = ['n1', 'n2', 'n3']

/** All servers, that of the node first. */
export function serversOf (node: string): string[] {
  const own = NODES.indexOf(node)
  return SERVERS.map((_, at) => SERVERS[(own + at) % SERVERS.length]!)
}

export function oneOf (names: string[], random: () => number): string {
  return names[Math.floor(random() * names.length)]!
}
