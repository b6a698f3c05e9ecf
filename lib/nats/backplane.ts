import { isListed, type Backplane, type PresenceChange } from '../cluster/backplane.ts'
import { Requests } from './requests.ts'
import { RecordAudit } from './record-audit.ts'
import { PresenceList } from './presence.ts'
import { PubSub } from './pubsub.ts'
import { Link, type Prepare } from './link.ts'
import type { LinkOptions } from './link-options.ts'
import { Membership } from './membership.ts'
import { OwnershipTable } from './ownership.ts'
import { StreamStore } from './stream-store.ts'
import { decode, encode } from './encoding.ts'

export type NatsBackplaneOptions = LinkOptions

/** The backplane of a link that is not open yet, and the streams to prepare when it opens. */
export interface LinkedBackplane {
  backplane: Backplane & Required<Pick<Backplane, 'close'>>
  prepare: Prepare
}

const CHANGES = 'change'

/** A backplane over a connection of its own, for a worker. Needs `@nats-io/transport-node` and `@nats-io/jetstream`. */
export async function natsBackplane (options: NatsBackplaneOptions = {}): Promise<Backplane> {
  const link = new Link(options)
  const { backplane, prepare } = backplaneOver(link)
  await link.open(prepare, () => backplane.close())
  return backplane
}

/** `close` of the backplane closes the link. */
export function backplaneOver (link: Link): LinkedBackplane {
  const records = StreamStore.bucket(link, 'devices')
  const tell = (change: PresenceChange) => { if (link.up && isListed(change.presence.deviceId)) link.publish(CHANGES, encode(change)) }
  const nodes = new Membership(link)
  const owners = new OwnershipTable(link, nodes, records, tell)
  const asks = new Requests(link, nodes, records)
  const channels = new PubSub(link, nodes)
  const census = new PresenceList(link, nodes, records, owners)
  const audit = new RecordAudit(link, nodes, records, owners, tell)
  const backplane: LinkedBackplane['backplane'] = {
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
  return { backplane, prepare: manager => records.prepare(manager) }
}
