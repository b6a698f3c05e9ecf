import { createRequire } from 'node:module'
import { join } from 'node:path'
import { Type } from '@sinclair/typebox'
import Fastify from 'fastify'
import devices, { contract } from '../lib/index.ts'

/**
 * Has `@asyncapi/parser` look at the AsyncAPI document, and exits with 1 if it finds an error. The parser, with 168 packages, is no development dependency: the
 * argument is the folder where it is installed.
 */
const { Parser } = createRequire(join(process.argv[2]!, 'package.json'))('@asyncapi/parser')
const app = Fastify()
await app.register(devices, {
  contract: contract({
    methods: { sale: { params: Type.Object({ total: Type.Number() }), result: Type.Object({ no: Type.Integer() }) } },
    commands: { reboot: { params: Type.Object({ delay: Type.Number() }) } },
    topics: { 'prices/+': Type.Object({ cents: Type.Integer() }) },
    message: Type.Object({ show: Type.String() })
  })
})
await app.ready()
const { diagnostics } = await new Parser().parse(JSON.stringify(app.devices.asyncapi()))
await app.close()
const errors = diagnostics.filter(({ severity }: { severity: number }) => severity === 0)
for (const { message, path } of errors) process.stderr.write(`${path.join('/')}: ${message}\n`)
process.exitCode = errors.length > 0 ? 1 : 0
