export { natsBackplane, type NatsOptions } from './backplane.ts'
export { natsMailbox, type NatsMailboxOptions } from './mailbox.ts'
