import type { Mailbox } from './mailbox.ts'

/** For a node without a mailbox: nothing waits, and nothing can be made to. */
export function noMailbox (): Mailbox {
  return {
    shared: true,
    async put () { throw new Error('A message can wait only in a mailbox: give this node the one that its gateways have') },
    async * letters () {},
    async waiting () { return 0 },
    async settle () { return false },
    async receipt () { return undefined },
    async addAttempt () { return 0 },
    async sweep () { return [] }
  }
}
