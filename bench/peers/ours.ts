import { Type } from '@sinclair/typebox'
import Fastify from 'fastify'
import devices from 'fastify-devices'
import { diskMailbox } from 'fastify-devices/disk'
import { childSettings } from '../child.ts'
import { listenFastify } from './listen.ts'

// This package with its defaults, except the rate limit: the echo is measured, not the limit.

const RATE = 1_000_000
const { folder } = childSettings()
const Text = Type.Object({ text: Type.String() }, { additionalProperties: false })

const app = Fastify()
await app.register(devices, { rate: RATE, burst: RATE, ...(folder !== undefined && { mailbox: await diskMailbox({ path: folder }) }) })
app.devices.handle('echo', { params: Text, result: Text }, params => params)

await listenFastify(app)
