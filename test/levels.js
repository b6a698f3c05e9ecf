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
    'backplane', 'codec', 'deadline', 'dispatcher', 'mailbox', 'methods', 'peer', 'readiness', 'registry', 'sorted-index', 'sources', 'testing', 'write-queue'
  ],
  integration: [
    'access', 'admission', 'bench', 'client', 'cluster', 'dial', 'disk', 'docs', 'hooks', 'hosts', 'limits', 'nats', 'nats-mailbox', 'ocpp', 'options', 'page', 'plugin', 'rest', 'snippets',
    'stream-store', 'synced', 'takeover', 'tcp', 'testing-guide', 'tmpfs', 'topics', 'transports', 'upgrades', 'worker'
  ],
  campaigns: ['breakage', 'campaigns', 'campaigns-nodes', 'cuts', 'kill', 'partition']
}

/** The paths of the files of a level. */
export function filesOf (level) {
  return levels[level].map(name => `test/${name}.test.ts`)
}

// As a program it prints them: tap $(node test/levels.js unit)
if (import.meta.url === pathToFileURL(process.argv[1]).href) console.log(filesOf(process.argv[2]).join(' '))
