import { isListed, type Backplane, type PresenceChange } from '../cluster/backplane.ts'
import { Requests } from './requests.ts'
import { RecordAudit } from './record-audit.ts'
import { PresenceList } from './presence.ts'
import { PubSub } from './pubsub.ts'
import { Link, type LinkOptions } from './link.ts'
import { Membership } from './membership.ts'
import { OwnershipTable } from './ownership.ts'
import { StreamStore } from './stream-store.ts'
import { decode, encode } from './encoding.ts'

export type NatsOptions = LinkOptions

const CHANGES = 'change'

/** Joins the nodes that have the same NATS. Needs `@nats-io/transport-node` and `@nats-io/jetstream`. */
export async function natsBackplane (options: NatsOptions = {}): Promise<Backplane> {
  const link = new Link(options)
  const records = StreamStore.bucket(link, 'devices')
  const tell = (change: PresenceChange) => { if (link.up && isListed(change.presence.deviceId)) link.publish(CHANGES, encode(change)) }
  const nodes = new Membership(link)
  const owners = new OwnershipTable(link, nodes, records, tell)
  const asks = new Requests(link, nodes, records)
  const channels = new PubSub(link, nodes)
  const census = new PresenceList(link, nodes, records, owners)
  const audit = new RecordAudit(link, nodes, records, owners, tell)
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
