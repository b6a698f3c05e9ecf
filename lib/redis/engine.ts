import type { Backplane } from '../cluster/backplane.ts'
import type { Mailbox } from '../storage/mailbox.ts'
import { backplaneOver } from './backplane.ts'
import { Link } from './link.ts'
import type { LinkOptions } from './link-options.ts'
import { mailboxOver } from './mailbox.ts'

export interface RedisOptions extends LinkOptions {
  /**
   * Milliseconds for which the receipt of a settled letter is kept.
   * @default 86_400_000
   */
  keepReceipts?: number
}

/** The two options of the plugin that join nodes. */
export interface RedisEngine {
  backplane: Backplane
  mailbox: Mailbox
}

/**
 * The backplane and the mailbox of a node: `app.register(devices, { ...await redis({ url }) })`. Closing the backplane closes the connection. A worker
 * takes the backplane alone. Needs `ioredis`.
 */
export async function redis ({ keepReceipts, ...options }: RedisOptions = {}): Promise<RedisEngine> {
  const link = new Link(options)
  const { backplane, clock, prepare } = backplaneOver(link)
  const mailbox = mailboxOver(link, clock, keepReceipts)
  await link.open(prepare, () => backplane.close())
  return { backplane, mailbox }
}
