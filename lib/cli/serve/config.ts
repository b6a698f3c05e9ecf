import { existsSync } from 'node:fs'
import { resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import type { FastifyPluginAsync, FastifyPluginCallback } from 'fastify'
import type { Options } from '../../index.ts'
import { CommandFailure } from '../command-failure.ts'

/** What a config module exports, as modules for fastify-cli do. */
export interface GatewayConfig {
  /** Options of the plugin. */
  options?: Options
  /** A Fastify plugin, registered after `fastify-devices`: handlers, listeners and routes. */
  default?: FastifyPluginAsync | FastifyPluginCallback
}

/** Loads a config module. An error of the module itself is passed on with its stack. */
export async function loadConfig (path: string): Promise<GatewayConfig> {
  const file = resolve(path)
  if (!existsSync(file)) throw new CommandFailure('usage', `There is no file "${file}"`)
  const { options, default: plugin, ...rest } = await import(pathToFileURL(file).href)
  const unknown = Object.keys(rest).find(name => name !== 'module.exports')
  if (unknown !== undefined) throw new CommandFailure('usage', `The config exports "${unknown}"; it may export options, and a Fastify plugin as its default`)
  if (plugin !== undefined && typeof plugin !== 'function') throw new CommandFailure('usage', 'The default export of the config is not a Fastify plugin: export default async app => { ... }')
  if (options !== undefined && (typeof options !== 'object' || options === null || Array.isArray(options))) throw new CommandFailure('usage', 'The export "options" of the config is not an object')
  return { ...(options && { options: withoutUndefined(options) }), ...(plugin && { default: plugin }) }
}

/** An option that is undefined is not set: it must not remove what the flags have set, like the token. */
function withoutUndefined (options: Options): Options {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined))
}
