import { once } from 'node:events'
import { isIP } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance } from 'fastify'
import type { Command, Invocation } from '../command.ts'
import { CommandFailure } from '../command-failure.ts'
import { interruptible } from '../interruptible.ts'
import type { Output } from '../output.ts'
import { loadConfig } from '../serve/config.ts'

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
    { line: 'fastify-devices serve --config ./gateway.mjs', does: 'With handlers of your own' }
  ],
  async run (invocation) {
    const { flags, terminal: { signal, stdout }, output } = invocation
    if (flags.isGiven('data') && flags.text('nats') !== undefined) throw new CommandFailure('usage', 'With --nats or NATS_URL, NATS keeps the letters; leave --data out')
    const [port = DEFAULT_PORT, host = DEFAULT_HOST, file] = [flags.port('port'), flags.text('host'), flags.text('config')]
    const drainDelay = flags.delay('drain-delay') ?? 0
    const settings = {
      data: flags.text('data'), nats: flags.text('nats'), token: flags.token(), trustProxy: trustedProxies(flags.text('trust-proxy')), signal,
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

interface GreetingFacts {
  data?: string | undefined
  nats?: string | undefined
  token?: string | undefined
  hasConsole: boolean
}

/** What a person on a terminal may do next. */
export function greeting (output: Pick<Output, 'style'>, url: string, { data, nats, token, hasConsole }: GreetingFacts): string {
  const at = url === `http://${DEFAULT_HOST}:${DEFAULT_PORT}` ? '' : ` --url ${url}`
  const letters = nats !== undefined ? 'in NATS' : data ?? 'in memory, until the gateway ends; --data FOLDER keeps them'
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
