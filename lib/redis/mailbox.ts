import { noMailbox } from '../storage/none.ts'
import type { Mailbox } from '../storage/mailbox.ts'
import type { Link } from './link.ts'
import type { ServerClock } from './server-clock.ts'

/** The mailbox of a link. It leaves the link to its caller. */
export function mailboxOver (_link: Link, _clock: ServerClock, _keepReceipts = 86_400_000): Mailbox {
  return noMailbox()
}
