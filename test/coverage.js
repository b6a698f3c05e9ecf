import { accessSync, constants, readdirSync } from 'node:fs'
import { delimiter, join } from 'node:path'

/** Files that only tests with a server run; without the server the tests are skipped. */
const servers = { 'lib/nats/': 'nats-server', 'lib/redis/': 'redis-server' }
const folders = [...(process.env.PATH ?? '').split(delimiter), '/usr/local/sbin', '/usr/sbin', '/sbin']
const skipped = Object.keys(servers).filter(room => !folders.some(folder => isProgram(join(folder, servers[room]))))

const files = readdirSync('lib', { recursive: true }).map(name => `lib/${name.replaceAll('\\', '/')}`).filter(name => name.endsWith('.ts'))
const covered = files.filter(name => !skipped.some(room => name.startsWith(room)))

/** The files of which the tests must run every line. */
export default () => covered

function isProgram (path) {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}
