import Fastify from 'fastify'
import devices from 'fastify-devices'
import { nats } from 'fastify-devices/nats'
import { settingsOfChild } from '../child.ts'
import { standFastify } from './stand.ts'

// This package as one of several nodes.

const { servers } = settingsOfChild()

const app = Fastify()
await app.register(devices, await nats({ servers }))

await standFastify(app)
