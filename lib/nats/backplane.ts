import { isListed, type Backplane, type Change } from '../cluster/backplane.ts'
import { Asks } from './requests.ts'
import { Audit } from './record-audit.ts'
import { Census } from './presence.ts'
import { Channels } from './pubsub.ts'
import { Link, type LinkOptions } from './link.ts'
import { Nodes } from './membership.ts'
import { Owners } from './ownership.ts'
import { Records } from './stream-store.ts'
import { decode, encode } from './encoding.ts'

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
