import type { Backplane } from '../cluster/backplane.ts'
import type { Mailbox } from '../storage/mailbox.ts'
import { backplaneOver } from './backplane.ts'
import { Link } from './link.ts'
import { mailboxOver, type NatsMailboxOptions } from './mailbox.ts'

export type NatsOptions = NatsMailboxOptions

/** The two options of the plugin that join nodes. */
export interface NatsEngine {
  backplane: Backplane
  mailbox: Mailbox
}

/**
 * The backplane and the mailbox of a node, both over one connection: `app.register(devices, { ...await nats({ servers }) })`. Closing the backplane
 * closes the connection. Needs `@nats-io/transport-node` and `@nats-io/jetstream`.
 */
export async function nats ({ keepReceipts, maxBytes, ...options }: NatsOptions = {}): Promise<NatsEngine> {
  const link = new Link(options)
  const [{ backplane, prepare }, letters] = [backplaneOver(link), mailboxOver(link, { keepReceipts, maxBytes })]
  await link.open(manager => Promise.all([prepare(manager), letters.prepare(manager)]), () => backplane.close())
  return { backplane, mailbox: letters.mailbox }
}
