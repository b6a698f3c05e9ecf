import { randomBytes } from 'node:crypto'
import type { FastifyBaseLogger } from 'fastify'
import type { Backplane } from '../cluster/backplane.ts'
import { Devices, type Protect } from './devices.ts'
import type { Dialer } from './dial.ts'
import { Events } from '../messaging/events.ts'
import { Letters } from '../messaging/letters.ts'
import { MailboxSize } from '../messaging/mailbox-size.ts'
import type { Mailbox } from '../storage/mailbox.ts'
import { pathsOf } from './paths.ts'
import { Readiness } from './readiness.ts'
import { Methods, type RemoteMethods } from './methods.ts'
import { ContractChecks } from './contract-checks.ts'
import type { OutboundChecks } from '../connection/outbound-checks.ts'
import type { Settings } from './options.ts'
import { Dispatcher } from '../messaging/dispatcher.ts'
import { Registry } from '../connection/registry.ts'
import { Stats } from '../connection/stats.ts'
import type { TopicLimits } from '../protocol/topics.ts'
import type { WebhookReport } from './webhook-options.ts'

/** The settings and engines of a node. */
export interface AssemblyOptions {
  settings: Settings
  mailbox: Mailbox
  backplane: Backplane
  log: FastifyBaseLogger
  /** Answers methods that have no handler on this node. */
  elsewhere?: RemoteMethods
  /** Opens outbound connections; a worker has none. */
  dials?: Dialer
  /** Protects routes of other plugins; a worker has no routes. */
  protect?: Protect
  /** The prefix of the scope in which the plugin is registered. */
  scope?: string
  /** Describes the endpoints of webhooks; a worker has none. */
  webhooks?: () => Promise<WebhookReport[]>
}

/** The parts that every node has. */
export interface NodeParts {
  /** The name of the node. */
  node: string
  topic: TopicLimits
  /** Those of the contract, if there is one. */
  checks: OutboundChecks | undefined
  stats: Stats
  events: Events
  registry: Registry
  letters: Letters
  dispatcher: Dispatcher
  methods: Methods
  devices: Devices
  readiness: Readiness
}

export function assemble ({ settings, mailbox, backplane, log, elsewhere, dials, protect, scope = '', webhooks }: AssemblyOptions): NodeParts {
  if (backplane.remote && !mailbox.shared) {
    throw new Error('fastify-devices: the option "mailbox" must be one that all nodes share, such as that of redis() or nats(): a device that reconnects to another node would not get the letters of this one')
  }
  const node = settings.node ?? randomBytes(6).toString('base64url')
  const topic = { length: settings.maxTopicLength, levels: settings.maxTopicLevels }
  const { contract } = settings
  const checks = contract && new ContractChecks(contract, topic, log)
  const stats = new Stats(log)
  const events = new Events(log)
  const registry = new Registry()
  const letterLimits = { letters: settings.maxLetters, bytes: settings.maxLetterBytes }
  const letters = new Letters({ mailbox, backplane, node, limits: letterLimits, stats, events, log })
  const dispatcher = new Dispatcher({ registry, backplane, letters, node, limits: settings, log, checks })
  const methods = new Methods(stats, log, elsewhere)
  const readiness = new Readiness({ mailbox, backplane })
  const mailboxSize = new MailboxSize(mailbox)
  const devices = new Devices({ registry, dispatcher, letters, methods, events, stats, backplane, dials, protect, webhooks, topic, contract, paths: pathsOf(scope, settings), readiness, mailboxSize })
  return { node, topic, checks, stats, events, registry, letters, dispatcher, methods, devices, readiness }
}
