import { existsSync, readdirSync } from 'node:fs'
import { delimiter, join } from 'node:path'

/** What only the tests over NATS run; these say so where nats-server is missing. */
const overNats = /^lib\/(nats\/|backplanes\/nats\.ts|mailboxes\/jetstream\.ts)/
const folders = [...(process.env.PATH ?? '').split(delimiter), '/usr/local/sbin', '/usr/sbin', '/sbin']
const isOverNats = folders.some(folder => existsSync(join(folder, 'nats-server')))

const files = readdirSync('lib', { recursive: true }).map(name => `lib/${name.replaceAll('\\', '/')}`).filter(name => name.endsWith('.ts'))
const covered = files.filter(name => isOverNats || !overNats.test(name))

/** The files of which every line must be run by some test. */
export default () => covered
