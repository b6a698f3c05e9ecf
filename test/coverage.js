import { accessSync, constants, readdirSync } from 'node:fs'
import { delimiter, join } from 'node:path'

/** What only the tests over NATS run; where nats-server is missing these say so and are skipped. */
const overNats = /^lib\/nats\//
const folders = [...(process.env.PATH ?? '').split(delimiter), '/usr/local/sbin', '/usr/sbin', '/sbin']
const hasNats = folders.some(folder => isProgram(join(folder, 'nats-server')))

const files = readdirSync('lib', { recursive: true }).map(name => `lib/${name.replaceAll('\\', '/')}`).filter(name => name.endsWith('.ts'))
const covered = files.filter(name => hasNats || !overNats.test(name))

/** The files of which some test must run every line. */
export default () => covered

function isProgram (path) {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}
