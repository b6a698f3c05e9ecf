import { once } from 'node:events'
import { isIP } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance } from 'fastify'
import type { Command, Invocation } from '../command.ts'
import { CommandFailure } from '../command-failure.ts'
import type { Flags } from '../flags.ts'
import { interruptible } from '../interruptible.ts'
import type { Output } from '../output.ts'
import { loadConfig } from '../serve/config.ts'
import type { EngineSettings } from '../serve/engines.ts'

const DEFAULT_PORT = 3_000
const DEFAULT_HOST = '127.0.0.1'
const LOG_LEVELS = ['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent']

export const serve: Command = {
  name: 'serve',
  summary: 'Run a gateway',
  parameters: [],
  flags: {
    port: { value: 'PORT', about: 'Port to listen on; by default 3000, and 0 takes a free one', env: 'PORT' },
    host: { value: 'HOST', about: 'Address to listen on; by default 127.0.0.1', env: 'HOST' },
    data: { value: 'FOLDER', about: 'Keep letters in this folder; without it, in memory', env: 'DATA' },
    redis: { value: 'URL', about: 'Be one of many nodes: Redis keeps the letters, and DATA is not used', env: 'REDIS_URL' },
    nats: { value: 'SERVERS', about: 'Be one of many nodes: NATS keeps the letters, and DATA is not used', env: 'NATS_URL' },
    token: { value: 'TOKEN', about: 'Devices and REST callers need it. Without it, only this machine may connect', env: 'TOKEN' },
    'trust-proxy': { value: 'ADDRESSES', about: 'Addresses of proxies, separated by commas; the address of a device is the one that they forward', env: 'TRUST_PROXY' },
    'drain-delay': { value: 'SECONDS', about: 'How long to serve after SIGTERM, while /readyz answers 503; by default 0', env: 'DRAIN_DELAY' },
    config: { value: 'FILE', about: 'A module with options of the plugin, handlers and routes', env: 'FASTIFY_DEVICES_CONFIG' },
    'log-level': { value: 'LEVEL', about: `One of ${LOG_LEVELS.join(', ')}; by default warn`, env: 'LOG_LEVEL' }
  },
  about: [
    'The config is an ES module. Its export "options" has options of the plugin, and overrides the flags.',
    'Its default export is a Fastify plugin, which has app.devices:',
    '  export const options = { rate: 100 }',
    '  export default async app => { app.devices.handle(\'time\', () => ({ now: Date.now() })) }',
    'The console is at /console. GET /healthz answers 200 while the process runs; GET /readyz 200 if the gateway can do its work, else 503 with the reasons.',
    'SIGTERM and Ctrl-C disconnect the devices and end the gateway; --drain-delay gives load balancers time to notice.'
  ],
  examples: [
    { line: 'fastify-devices serve', does: 'On this machine, with letters in memory' },
    { line: 'TOKEN=secret fastify-devices serve --host 0.0.0.0 --data ./data', does: 'For other machines, with letters on disk' },
    { line: 'REDIS_URL=redis://10.0.0.1:6379 TOKEN=secret fastify-devices serve --host 0.0.0.0', does: 'As one of many nodes' },
    { line: 'fastify-devices serve --config ./gateway.mjs', does: 'With handlers of your own' }
  ],
  async run (invocation) {
    const { flags, terminal: { signal, stdout }, output } = invocation
    const engines = engineSettings(flags)
    const [port = DEFAULT_PORT, host = DEFAULT_HOST, file] = [flags.port('port'), flags.text('host'), flags.text('config')]
    const drainDelay = flags.delay('drain-delay') ?? 0
    const settings = {
      ...engines, token: flags.token(), trustProxy: trustedProxies(flags.text('trust-proxy')), signal,
      log: { level: logLevel(invocation), stream: stdout }
    }
    const { createGateway } = await import('../serve/gateway.ts') // Fastify, which the other commands do not need
    const app = await interruptible(signal, start())
    try {
      const url = await listen(app, port, host)
      // a gateway does not depend on whether somebody reads its greeting
      await output.record({ url }, greeting(output, url, { ...settings, hasConsole: app.hasRoute({ method: 'GET', url: '/console/' }) })).catch(() => {})
      if (!signal.aborted) await once(signal, 'abort')
      // load balancers see that /readyz fails before requests do
      if (signal.reason === 'SIGTERM') await sleep(drainDelay * 1_000)
    } finally {
      await app.close()
    }

    async function start (): Promise<FastifyInstance> {
      return await createGateway({ ...settings, ...(file !== undefined && { config: await loadConfig(file) }) })
    }
  }
}

/** What keeps the letters and joins the nodes. The address of Redis may contain a password, so no message shows it. */
function engineSettings (flags: Flags): EngineSettings {
  const [data, redis, nats] = [flags.text('data'), flags.text('redis'), flags.text('nats')]
  if (redis !== undefined && nats !== undefined) throw new CommandFailure('usage', 'Redis or NATS, not both: leave out --redis and REDIS_URL, or --nats and NATS_URL')
  if (redis !== undefined && !isRedisUrl(redis)) throw new CommandFailure('usage', 'The address of Redis is redis://HOST:PORT, or rediss:// for TLS. Percent-encode special characters of its password')
  if (flags.isGiven('data') && redis !== undefined) throw new CommandFailure('usage', 'With --redis or REDIS_URL, Redis keeps the letters; leave --data out')
  if (flags.isGiven('data') && nats !== undefined) throw new CommandFailure('usage', 'With --nats or NATS_URL, NATS keeps the letters; leave --data out')
  return { data, redis, nats }
}

function isRedisUrl (text: string): boolean {
  return URL.canParse(text) && /^rediss?:$/.test(new URL(text).protocol)
}

function logLevel ({ flags }: Invocation): string {
  const level = flags.text('log-level') ?? 'warn'
  if (!LOG_LEVELS.includes(level)) throw new CommandFailure('usage', `"${level}" is not a level of the log: ${LOG_LEVELS.join(', ')}`)
  return level
}

/** Checks the addresses; Fastify takes the list as it is. */
function trustedProxies (list: string | undefined): string | undefined {
  for (const address of list?.split(',') ?? []) {
    const [, ip = '', bits = '1'] = /^\s*([^/]*?)(?:\/(\d{1,3}))?\s*$/.exec(address) ?? []
    if (!isIP(ip) || Number(bits) < 1 || Number(bits) > (isIP(ip) === 4 ? 32 : 128)) throw new CommandFailure('usage', `--trust-proxy is a list of addresses, not "${address}"`)
  }
  return list
}

async function listen (app: FastifyInstance, port: number, host: string): Promise<string> {
  try {
    return await app.listen({ port, host })
  } catch (error) {
    const { code, syscall } = error as NodeJS.ErrnoException
    if (syscall === undefined) throw error // of a hook or a plugin
    throw new CommandFailure('failed', code === 'EADDRINUSE' ? `Port ${port} of ${host} is in use; choose another with --port` : `Cannot listen on port ${port} of ${host}: ${code}`)
  }
}

interface GreetingFacts extends EngineSettings {
  token?: string | undefined
  hasConsole: boolean
}

/** What a person on a terminal may do next. */
export function greeting (output: Pick<Output, 'style'>, url: string, { data, redis, nats, token, hasConsole }: GreetingFacts): string {
  const at = url === `http://${DEFAULT_HOST}:${DEFAULT_PORT}` ? '' : ` --url ${url}`
  const letters = (redis && 'in Redis') ?? (nats && 'in NATS') ?? data ?? 'in memory, until the gateway ends; --data FOLDER keeps them'
  return [
    `Listening on ${output.style('bold', url)}`,
    ...(hasConsole ? [`Console       ${url}/console`] : []),
    `Letters       ${letters}`,
    `Access        ${token === undefined ? 'this machine only; --token admits others' : 'with the token; set FASTIFY_DEVICES_TOKEN for the commands below'}`,
    '',
    `Be a device   npx fastify-devices connect abc123${at}`,
    `Send to it    npx fastify-devices send abc123 '{"hello":"world"}'${at}`,
    `Send to all   npx fastify-devices broadcast '{"hello":"all"}'${at}`,
    `See them      npx fastify-devices ls${at}`
  ].join('\n')
}
