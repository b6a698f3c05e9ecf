import { accessSync, constants, readdirSync } from 'node:fs'
import { delimiter, join } from 'node:path'

/** Only tests that need nats-server run these files; without nats-server the tests are skipped. */
const needsNats = /^lib\/nats\//
const folders = [...(process.env.PATH ?? '').split(delimiter), '/usr/local/sbin', '/usr/sbin', '/sbin']
const hasNats = folders.some(folder => isProgram(join(folder, 'nats-server')))

const files = readdirSync('lib', { recursive: true }).map(name => `lib/${name.replaceAll('\\', '/')}`).filter(name => name.endsWith('.ts'))
const covered = files.filter(name => hasNats || !needsNats.test(name))

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
