import { isListed, type Backplane, type PresenceChange } from '../cluster/backplane.ts'
import { Requests } from './requests.ts'
import { RecordAudit } from './record-audit.ts'
import { PresenceList } from './presence.ts'
import { PubSub } from './pubsub.ts'
import { Link, type Prepare } from './link.ts'
import type { LinkOptions } from './link-options.ts'
import { healthOver } from './health.ts'
import { Membership } from './membership.ts'
import { OwnershipTable } from './ownership.ts'
import { StreamStore } from './stream-store.ts'
import { decode, encode } from '../cluster/encoding.ts'

export type NatsBackplaneOptions = LinkOptions

/** The backplane of a link that is not open yet, and the streams to prepare when it opens. */
export interface LinkedBackplane {
  backplane: Backplane & Required<Pick<Backplane, 'close'>>
  prepare: Prepare
}

const CHANGE_SUBJECT = 'change'

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
  const publishChange = (change: PresenceChange) => { if (link.up && isListed(change.presence.deviceId)) link.publish(CHANGE_SUBJECT, encode(change)) }
  const nodes = new Membership(link)
  const owners = new OwnershipTable(link, nodes, records, publishChange)
  const requests = new Requests(link, nodes, records)
  const pubsub = new PubSub(link, nodes)
  const presence = new PresenceList(link, nodes, records, owners)
  const audit = new RecordAudit(link, nodes, records, owners, publishChange)
  const backplane: LinkedBackplane['backplane'] = {
    remote: true,
    own: (deviceId, owner) => owners.own(deviceId, owner),
    ask: (deviceId, request, signal) => requests.ask(deviceId, request, signal),
    watch: (filter, listener) => pubsub.watch(filter, listener),
    publish: publication => pubsub.publish(publication),
    list: page => presence.list(page),
    follow (listener) {
      const subscription = link.subscribe(CHANGE_SUBJECT, message => listener(decode(message.data)))
      return () => subscription.end()
    },
    flush: () => link.flush(),
    onLink: listener => link.onChange(listener),
    onTrouble: listener => link.onTrouble(listener),
    health: () => healthOver(link),
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
