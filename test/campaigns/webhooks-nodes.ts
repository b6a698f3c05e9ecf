import devices from '../../lib/index.ts'
import { nats } from '../../lib/nats/index.ts'
import { programAt } from '../programs.ts'
import { SECRET, WebhookReceiver } from '../webhook-receiver.ts'
import { Balancer } from './balancer.ts'
import { command, settled, Verdict, type Outcome } from './campaign.ts'
import { Host, quietApp, type HostedApp } from './host.ts'
import { NatsServer } from './nats.ts'
import { sumOf, WebhookLane } from './webhook-lane.ts'

interface Size extends Record<string, number> {
  kills: number
  /** How often the node that sends is suspended until another one has taken over. */
  pauses: number
}

const NODES = ['n1', 'n2', 'n3']
const LANES = 12
const MESSAGES_BETWEEN_FAULTS = 100
const TIMEOUT_MS = 120_000

/** Kills or suspends the node that sends: another one goes on, and no acknowledged message is lost. */
export async function webhooksOfNodes ({ kills, pauses }: Size): Promise<Outcome> {
  const verdict = new Verdict()
  const server = await NatsServer.start(programAt('nats-server')!)
  const balancer = await Balancer.start()
  const receiver = await WebhookReceiver.start()
  const hosts = new Map<string, Host>()
  let isFinished = false
  const start = async (name: string) => {
    const host = await Host.start(import.meta.url, { name, servers: server.servers, url: receiver.url })
    hosts.set(name, host)
    balancer.add(name, host.url)
  }
  for (const name of NODES) await start(name)
  const lanes = Array.from({ length: LANES }, (_, number) => new WebhookLane(number, balancer.url, () => isFinished))
  const acknowledged = () => lanes.reduce((sum, lane) => sum + lane.acknowledged, 0)
  try {
    const sent = Promise.all(lanes.map(lane => lane.send()))
    const goesOn = async () => {
      const before = { acknowledged: acknowledged(), received: receiver.events.length }
      const hasGoneOn = async () => acknowledged() >= before.acknowledged + MESSAGES_BETWEEN_FAULTS && receiver.events.length > before.received
      verdict.same('whether messages are accepted and sent', await settled(hasGoneOn, true, TIMEOUT_MS), true)
      return senderOf(receiver.events.at(-1)!.headers['user-agent'])
    }
    const changes = async (sender: string) => {
      const hasChanged = async () => senderOf(receiver.events.at(-1)!.headers['user-agent']) !== sender
      verdict.same('whether another node sends', await settled(hasChanged, true, TIMEOUT_MS), true)
    }
    for (let count = 0; count < kills; count++) {
      const sender = await goesOn()
      balancer.remove(sender)
      await hosts.get(sender)!.kill()
      await changes(sender)
      await start(sender)
    }
    for (let count = 0; count < pauses; count++) {
      const sender = await goesOn()
      balancer.remove(sender)
      const host = hosts.get(sender)!
      host.signal('SIGSTOP')
      await changes(sender)
      host.signal('SIGCONT')
      balancer.add(sender, host.url)
    }
    isFinished = true
    await sent
    const senders = receiver.events.map(({ headers }) => senderOf(headers['user-agent']))
    const [host] = hosts.values()
    const waiting = await settled(async () => (await host!.ask('waiting')) as number, 0, TIMEOUT_MS)
    const { repeated, twice, ...found } = sumOf(lanes, receiver.events)
    verdict.same('events that wait in the end', waiting, 0)
    verdict.same('what must not be', { lost: found.lost, outOfOrder: found.outOfOrder }, { lost: 0, outOfOrder: 0 })
    const switches = senders.filter((sender, at) => at > 0 && sender !== senders[at - 1]).length
    // both of the others may notice at once that the sender is gone: then one takes over, and the other one after it
    verdict.holds('the sender did not change with each fault', switches >= kills + pauses)
    verdict.within('changes of the sender', switches, (kills + pauses) * (NODES.length - 1))
    verdict.same('requests with a wrong signature', receiver.invalid, [])
    verdict.same('uncaught errors', [...hosts.values()].flatMap(({ faults }) => faults), [])
    return {
      line: `webhooks-nodes: ${NODES.length} nodes, ${kills} kills and ${pauses} pauses of the sender; ${found.acknowledged} messages acknowledged, ${repeated} sent again by the devices, ` +
        `${receiver.events.length} requests, ${twice} events sent again, ${switches} changes of the sender; lost ${found.lost}, out of order ${found.outOfOrder}`,
      wrong: verdict.wrong
    }
  } finally {
    for (const lane of lanes) lane.close()
    await Promise.all([...hosts.values()].map(host => host.kill()))
    balancer.close()
    await receiver.close()
    await server.remove()
  }
}

/** The node that a request names. */
function senderOf (userAgent = ''): string {
  return /\((?<node>.*)\)/.exec(userAgent)!.groups!.node!
}

// A node.

async function prepare ({ name, servers, url }: { name: string, servers: string, url: string }): Promise<HostedApp> {
  const app = quietApp()
  await app.register(devices, { node: name, ...await nats({ servers }), webhooks: [{ url, secret: SECRET, name: 'hook', types: ['message'] }] })
  return { app, commands: { waiting: async () => (await app.devices.webhooks())[0]!.waiting } }
}

await command(import.meta.url, { kills: 20, pauses: 5 }, webhooksOfNodes, prepare)
