import { Failure } from '../protocol/errors.ts'
import type { Mailbox } from './mailbox.ts'

/** For a node without a mailbox: letters are refused. */
export function noMailbox (): Mailbox {
  return {
    shared: true,
    async put () { throw new Failure('store-full', { message: 'This node has no mailbox: give it the one that its gateways share' }) },
    async * letters () {},
    async waiting () { return 0 },
    async settle () { return false },
    async receipt () { return undefined },
    async addAttempt () { return 0 },
    async sweep () { return [] }
  }
}
