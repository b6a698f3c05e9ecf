import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import devices from '../../lib/index.ts'
import { diskMailbox } from '../../lib/storage/disk/index.ts'
import { SECRET, WebhookReceiver } from '../webhook-receiver.ts'
import { command, seededRandom, settled, Verdict, type Outcome } from './campaign.ts'
import { Host, quietApp, reportFault, type HostedApp } from './host.ts'
import { freePort } from './port.ts'
import { sumOf, WebhookLane } from './webhook-lane.ts'

const LANES = 16
const [MIN_LIFETIME_MS, MAX_LIFETIME_MS] = [100, 500]
/** Requests that the endpoint answers late, fails or resets. */
const [LATE_SHARE, FAILED_SHARE, RESET_SHARE] = [0.2, 0.01, 0.01]
const LONGEST_DELAY_MS = 50
const DRAIN_TIMEOUT_MS = 120_000
const SEED = 20_260_101

/** Kills the gateway while devices send messages: the endpoint gets every acknowledged message, in the order of each device. */
export async function webhooks ({ kills, seed }: { kills: number, seed: number }): Promise<Outcome> {
  const verdict = new Verdict()
  const random = seededRandom(seed)
  const path = await mkdtemp(join(tmpdir(), 'webhooks-'))
  const port = await freePort()
  const receiver = await unreliableReceiver(random)
  const hosts = [Host.load(import.meta.url)] // the next process loads its modules in advance
  let isFinished = false
  const lanes = Array.from({ length: LANES }, (_, number) => new WebhookLane(number, `http://127.0.0.1:${port}`, () => isFinished))
  const start = async () => {
    const host = hosts.at(-1)!
    await host.begin({ path, url: receiver.url }, port)
    hosts.push(Host.load(import.meta.url))
    return host
  }
  try {
    const sent = Promise.all(lanes.map(lane => lane.send()))
    for (let count = 0; count < kills; count++) {
      const host = await start()
      const before = receiver.events.length
      await settled(async () => receiver.events.length > before, true)
      await sleep(MIN_LIFETIME_MS + random() * (MAX_LIFETIME_MS - MIN_LIFETIME_MS))
      await host.kill()
    }
    const last = await start()
    isFinished = true
    await sent
    const waiting = await settled(async () => (await last.ask('waiting')) as number, 0, DRAIN_TIMEOUT_MS)
    const { acknowledged, repeated, twice, ...wrong } = sumOf(lanes, receiver.events)
    verdict.same('events that wait in the end', waiting, 0)
    verdict.same('what must not be', wrong, { lost: 0, outOfOrder: 0 })
    verdict.same('requests with a wrong signature', receiver.invalid, [])
    verdict.holds('no message was acknowledged', acknowledged > 0)
    verdict.same('exit', await last.stop(), { code: 0, signal: null })
    verdict.same('faults', hosts.flatMap(({ faults }) => faults), [])
    return {
      line: `webhooks: ${kills} kills (seed ${seed}); ${acknowledged} messages acknowledged, ${repeated} sent again by the devices, ${receiver.events.length} requests, ` +
        `${twice} events sent again; lost ${wrong.lost}, out of order ${wrong.outOfOrder}`,
      wrong: verdict.wrong
    }
  } finally {
    for (const lane of lanes) lane.close()
    await Promise.all(hosts.map(host => host.kill()))
    await receiver.close()
    await rm(path, { recursive: true, force: true })
  }
}

async function unreliableReceiver (random: () => number): Promise<WebhookReceiver> {
  const receiver = await WebhookReceiver.start()
  receiver.respond = async response => {
    const luck = random()
    if (luck < RESET_SHARE) return void response.destroy()
    if (luck < RESET_SHARE + FAILED_SHARE) return void response.writeHead(500).end()
    if (luck < RESET_SHARE + FAILED_SHARE + LATE_SHARE) await sleep(random() * LONGEST_DELAY_MS)
    response.end()
  }
  return receiver
}

// The gateway.

async function prepare ({ path, url }: { path: string, url: string }): Promise<HostedApp> {
  const app = quietApp({ push: reportFault })
  await app.register(devices, { mailbox: await diskMailbox({ path }), webhooks: [{ url, secret: SECRET, name: 'hook', types: ['message'] }] })
  return { app, commands: { waiting: async () => (await app.devices.webhooks())[0]!.waiting } }
}

await command(import.meta.url, { kills: 500, seed: SEED }, webhooks, prepare)
