import { isListed, type Backplane, type Change } from '../backplane.ts'
import { Asks } from '../nats/asks.ts'
import { Audit } from '../nats/audit.ts'
import { Census } from '../nats/census.ts'
import { Channels } from '../nats/channels.ts'
import { Link, type LinkOptions } from '../nats/link.ts'
import { Nodes } from '../nats/nodes.ts'
import { Owners } from '../nats/owners.ts'
import { Records } from '../nats/records.ts'
import { decode, encode } from '../nats/wire.ts'

export type NatsOptions = LinkOptions

const CHANGES = 'change'

/** Joins the nodes that have the same NATS. Needs `@nats-io/transport-node` and `@nats-io/jetstream`. */
export async function nats (options: NatsOptions = {}): Promise<Backplane> {
  const link = new Link(options)
  const records = Records.bucket(link, 'devices')
  const tell = (change: Change) => { if (link.up && isListed(change.presence.deviceId)) link.publish(CHANGES, encode(change)) }
  const nodes = new Nodes(link)
  const owners = new Owners(link, nodes, records, tell)
  const asks = new Asks(link, nodes, records)
  const channels = new Channels(link, nodes)
  const census = new Census(link, nodes, records, owners)
  const audit = new Audit(link, nodes, records, owners, tell)
  try {
    await link.open(manager => records.prepare(manager))
  } catch (error) {
    audit.close()
    owners.close()
    nodes.close()
    throw error
  }

  return {
    remote: true,
    own: (deviceId, owner) => owners.own(deviceId, owner),
    ask: (deviceId, request, signal) => asks.ask(deviceId, request, signal),
    watch: (filter, listener) => channels.watch(filter, listener),
    publish: publication => channels.publish(publication),
    list: page => census.list(page),
    follow (listener) {
      const subscribed = link.subscribe(CHANGES, message => listener(decode(message.data)))
      return () => subscribed.end()
    },
    flush: () => link.flush(),
    onLink: listener => link.onChange(listener),
    onTrouble: listener => link.onTrouble(listener),
    async close () {
      audit.close()
      await owners.close()
      nodes.close()
      await link.flush()
      await link.close()
    }
  }
}
