import type { Mailbox } from './mailbox.ts'

/** For a node without a mailbox: letters are refused. */
export function noMailbox (): Mailbox {
  return {
    shared: true,
    async put () { throw new Error('This node has no mailbox: give it the one that its gateways share') },
    async * letters () {},
    async waiting () { return 0 },
    async settle () { return false },
    async receipt () { return undefined },
    async addAttempt () { return 0 },
    async sweep () { return [] }
  }
}
