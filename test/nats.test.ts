import t from 'tap'
import { nats } from '../lib/backplanes/nats.ts'
import { jetstreamMailbox } from '../lib/mailboxes/jetstream.ts'
import { backplaneContract } from './contracts/backplane.ts'
import { mailboxContract } from './contracts/mailbox.ts'
import { NatsServer } from './campaigns/nats.ts'
import { withProgram } from './programs.ts'

withProgram(t, 'nats-server', 'over NATS', async (t, path) => {
  const server = await NatsServer.start(path)
  t.after(() => server.remove())
  let made = 0
  backplaneContract(t, 'nats()', async () => {
    const options = { servers: server.servers, prefix: `c${++made}` }
    const [a, b] = [await nats(options), await nats(options)]
    return { a, b, close: async () => { await Promise.all([a.close!(), b.close!()]) } }
  })
  mailboxContract(t, 'jetstreamMailbox()', () => jetstreamMailbox({ servers: server.servers, prefix: `m${++made}` }))
})
