import Fastify from 'fastify'
import devices from 'fastify-devices'
import { nats } from 'fastify-devices/nats'
import { childSettings } from '../child.ts'
import { listenFastify } from './listen.ts'

// This package as one of several nodes.

const { servers } = childSettings()

const app = Fastify()
await app.register(devices, await nats({ servers }))

await listenFastify(app)
