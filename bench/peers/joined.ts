import Fastify from 'fastify'
import devices from 'fastify-devices'
import { nats } from 'fastify-devices/nats'
import { redis } from 'fastify-devices/redis'
import type { BrokerAddress } from '../broker.ts'
import { childSettings } from '../child.ts'
import { listenFastify } from './listen.ts'

// This package as one of several nodes.

const address: BrokerAddress = childSettings()

const app = Fastify()
await app.register(devices, 'nats' in address ? await nats({ servers: address.nats }) : await redis({ url: address.redis }))

await listenFastify(app)
