import { connect } from '@nats-io/transport-node'
import { Redis } from 'ioredis'
import type { BrokerAddress } from '../broker.ts'

type Receive = (message: string, answer: (message: string) => void) => void

/** What a developer uses between nodes: messages to all other nodes, and an answer to one of them. */
export interface NodeChannel {
  publish (message: string): void
  /** Resolves with the first answer. */
  ask (message: string): Promise<string>
}

const CHANNEL = 'devices'
const TIMEOUT_MS = 10_000

export async function openChannel (address: BrokerAddress, receive: Receive): Promise<NodeChannel> {
  return 'nats' in address ? await natsChannel(address.nats, receive) : await redisChannel(address.redis, receive)
}

async function natsChannel (servers: string, receive: Receive): Promise<NodeChannel> {
  const nats = await connect({ servers, noEcho: true })
  nats.subscribe(CHANNEL, { callback: (_error, message) => receive(message.string(), answer => message.respond(answer)) })
  return {
    publish: message => nats.publish(CHANNEL, message),
    ask: async message => (await nats.request(CHANNEL, message, { timeout: TIMEOUT_MS })).string()
  }
}

/** Redis has no answers: each node has a channel for them. A message begins with the number of the question, and who asks. */
async function redisChannel (url: string, receive: Receive): Promise<NodeChannel> {
  const [client, subscriber] = [new Redis(url), new Redis(url)]
  const own = `${CHANNEL}:${process.pid}`
  const pending = new Map<string, (answer: string) => void>()
  let last = 0
  await subscriber.subscribe(CHANNEL, own)
  subscriber.on('message', (channel, text) => {
    const [number = '', from = ''] = text.split(' ', 2)
    const message = text.slice(number.length + from.length + 2)
    if (channel === own) pending.get(number)?.(message)
    else if (from !== own) receive(message, answer => void client.publish(from, `${number} ${own} ${answer}`))
  })
  return {
    publish: message => void client.publish(CHANNEL, `0 ${own} ${message}`),
    async ask (message) {
      const number = String(++last)
      const timer = setTimeout(() => pending.get(number)?.('{"error":"timeout"}'), TIMEOUT_MS)
      const answer = await new Promise<string>(resolve => {
        pending.set(number, resolve)
        void client.publish(CHANNEL, `${number} ${own} ${message}`)
      })
      clearTimeout(timer)
      pending.delete(number)
      return answer
    }
  }
}
