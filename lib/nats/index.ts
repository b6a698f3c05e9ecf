export { nats, type NatsOptions } from './backplane.ts'
export { jetstreamMailbox, type JetStreamMailboxOptions } from './mailbox.ts'
