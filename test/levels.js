import { pathToFileURL } from 'node:url'

/**
 * The test files of each level, without `.test.ts`. A test fails where a file has no level.
 *
 * - `unit`: within one process; no port, no other program, nothing written to a disk
 * - `integration`: real ports, disks, browsers and servers
 * - `campaigns`: the short form of each campaign
 */
export const levels = {
  unit: [
    'backplane', 'codec', 'deadline', 'dispatcher', 'event-feed', 'mailbox', 'methods', 'peer', 'readiness', 'redis-ownership', 'registry', 'request-context', 'sampler', 'schema',
    'sorted-index', 'sources', 'testing', 'write-queue'
  ],
  integration: [
    'access', 'admission', 'asyncapi', 'authorize', 'bench', 'cli', 'client', 'console', 'console-setup', 'contract', 'deploy', 'deploy-files', 'dial', 'disk', 'docs', 'drawings',
    'events', 'hooks', 'hosts', 'limits', 'metrics', 'metrics-setup', 'nats', 'nats-cluster', 'nats-mailbox', 'ocpp', 'openapi', 'options', 'plugin', 'prometheus', 'recipes',
    'redis', 'redis-access', 'redis-cluster', 'redis-faults', 'redis-mailbox', 'rest', 'snippets', 'stream-store', 'synced', 'takeover', 'tcp', 'tenants', 'testing-guide', 'tmpfs',
    'topics', 'trace', 'tracing', 'transports', 'upgrades', 'webhooks', 'worker'
  ],
  campaigns: ['breakage', 'campaigns', 'campaigns-nodes', 'campaigns-webhooks', 'cuts', 'failover', 'kill', 'partition', 'partition-redis']
}

/** The paths of the files of a level, as compiled. */
export function filesOf (level) {
  return levels[level].map(name => `dist/test/${name}.test.js`)
}

// As a program it prints them: tap $(node test/levels.js unit)
if (import.meta.url === pathToFileURL(process.argv[1]).href) console.log(filesOf(process.argv[2]).join(' '))
