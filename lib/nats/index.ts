export { nats, type NatsEngine, type NatsOptions } from './engine.ts'
export { natsBackplane, type NatsBackplaneOptions } from './backplane.ts'
export { natsMailbox, type NatsMailboxOptions } from './mailbox.ts'
