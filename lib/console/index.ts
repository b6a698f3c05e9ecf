import type { FastifyPluginAsync, LogLevel } from 'fastify'
import fp from 'fastify-plugin'
import { checkOptionNames } from '../protocol/option-names.ts'
import { addFiles } from './files.ts'
import { SAMPLE_INTERVAL_MS, Sampler } from './sampler.ts'

export interface ConsoleOptions {
  /**
   * Where the page is, within the scope in which the console is registered; `/` is the root.
   * @default '/console'
   */
  prefix?: string
  /**
   * The files of the page are behind `guard` too. For guards that browsers pass by themselves: cookies, basic authentication, client certificates.
   * @default false
   */
  guardFiles?: boolean
  /** Level of the log of the routes, as at `register` of any Fastify plugin. */
  logLevel?: LogLevel
  /** Serializers of the log of the routes, as at `register` of any Fastify plugin. */
  logSerializers?: Record<string, (value: any) => string>
}

const OPTION_NAMES: Record<keyof ConsoleOptions, true> = { prefix: true, guardFiles: true, logLevel: true, logSerializers: true }
const DEFAULT_PREFIX = '/console'

/** Fastify has put `options.prefix` before the routes of this scope already. */
const consolePlugin: FastifyPluginAsync<ConsoleOptions> = async (app, options) => {
  checkOptionNames('fastify-devices/console', options, OPTION_NAMES)
  const { prefix, guardFiles = false } = options
  const { rest, socket } = app.devices.paths
  if (rest === undefined) throw new Error('fastify-devices/console: the page needs the REST routes, which the option "rest: false" of fastify-devices removes')
  const sampler = new Sampler(app.devices)
  const scopePrefix = prefix === undefined ? DEFAULT_PREFIX : ''

  await app.register(async scope => {
    if (guardFiles) app.devices.protect(scope, 'console')
    addFiles(scope, { rest, socket })
  }, { prefix: scopePrefix })

  await app.register(async scope => {
    app.devices.protect(scope, 'console')
    scope.get('/samples', { schema: { hide: true } }, async (request, reply) => {
      const { after } = request.query as { after?: unknown }
      reply.header('cache-control', 'no-store')
      return { interval: SAMPLE_INTERVAL_MS, samples: sampler.after(Number(after ?? 0)) }
    })
  }, { prefix: scopePrefix })

  sampler.start()
  app.addHook('onClose', () => sampler.stop())
}

/** A page that shows the devices of the application and what happens, and that sends to them. Register it after `fastify-devices`. */
export default fp(consolePlugin, { name: 'fastify-devices-console', dependencies: ['fastify-devices'], encapsulate: true, fastify: '5.x' })
