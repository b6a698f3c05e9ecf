import type { Backplane } from '../cluster/backplane.ts'
import { decode } from '../cluster/encoding.ts'
import type { Link, Prepare } from './link.ts'
import { Membership } from './membership.ts'
import { CHANGES, nodeChannel, type NodeMessage } from './node-message.ts'
import { OwnershipTable } from './ownership.ts'
import { PresenceList } from './presence.ts'
import { PubSub } from './pubsub.ts'
import { RequestHandler } from './request-handler.ts'
import { Requests } from './requests.ts'
import { ServerClock } from './server-clock.ts'

/** The backplane of a link that is not open yet, and what prepares the link. */
export interface LinkedBackplane {
  backplane: Backplane & Required<Pick<Backplane, 'close'>>
  clock: ServerClock
  prepare: Prepare
}

/** `close` of the backplane closes the link. */
export function backplaneOver (link: Link): LinkedBackplane {
  const clock = new ServerClock()
  const nodes = new Membership(link, clock)
  const owners = new OwnershipTable(link, nodes)
  const requests = new Requests(link, nodes.self)
  const handler = new RequestHandler(link, owners)
  const pubsub = new PubSub(link, nodes.self, clock)
  const presence = new PresenceList(link, owners, requests, nodes.self)

  function receive (message: NodeMessage): void {
    switch (message.type) {
      case 'request': return void handler.receive(message).catch(error => link.trouble(error)) // not from a node
      case 'cancel': return handler.cancel(message.nonce)
      case 'probe': return handler.reply(message.from, message.nonce, { state: handler.has(message.about) ? 'there' : 'lost' })
      case 'list': return handler.reply(message.from, message.nonce, { page: presence.local(message.page) })
      case 'reply': return requests.receive(message)
      case 'yield': return owners.yield(message.deviceId, message.generation)
      case 'counts': return pubsub.count(message.counts)
      case 'beat': return nodes.heard()
    }
  }
  link.subscribe(nodeChannel(nodes.self), payload => receive(decode(payload)))

  const backplane: LinkedBackplane['backplane'] = {
    remote: true,
    own: (deviceId, owner) => owners.own(deviceId, owner),
    ask: (deviceId, request, signal) => requests.ask(deviceId, request, signal),
    watch: (filter, listener) => pubsub.watch(filter, listener),
    publish: publication => pubsub.publish(publication),
    list: page => presence.list(page),
    follow (listener) {
      const subscription = link.subscribe(CHANGES, payload => listener(decode(payload)))
      return () => subscription.end()
    },
    flush: () => link.flush(),
    onLink: listener => link.onChange(listener),
    onTrouble: listener => link.onTrouble(listener),
    health: () => link.health(),
    async close () {
      await owners.close()
      await nodes.close()
      link.close()
    }
  }
  return { backplane, clock, prepare: run => nodes.prepare(run) }
}
