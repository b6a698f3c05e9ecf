import Fastify from 'fastify'
import devices from 'fastify-devices'
import { nats } from 'fastify-devices/backplanes/nats'
import { jetstreamMailbox } from 'fastify-devices/mailboxes/jetstream'
import { settingsOfChild } from '../child.ts'
import { standFastify } from './stand.ts'

// This package as one of several nodes.

const { servers } = settingsOfChild()

const app = Fastify()
await app.register(devices, { backplane: await nats({ servers }), mailbox: await jetstreamMailbox({ servers }) })

await standFastify(app)
