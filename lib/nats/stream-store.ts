import { setTimeout as sleep } from 'node:timers/promises'
import { DiscardPolicy, JetStreamApiError, type JetStreamManager, type MsgRequest, type NextMsgRequest, type StoredMsg, type StreamConfig } from '@nats-io/jetstream'
import { Failure } from '../protocol/errors.ts'
import type { Link } from './link.ts'

export interface StoredRecord {
  /** Its place in the stream: grows, and never comes again. */
  seq: number
  /** As it was appended, without what comes first in all subjects of the stream. */
  subject: string
  data: Uint8Array
}

export interface AppendOptions {
  /** The place that the last record of the subject must have. */
  after?: number | undefined
  /**
   * There must be no record of the subject. Before NATS 2.10.19 a refusal makes the replicas of a stream disagree after the next failure of a
   * server, which can lose records: use it only where a refusal is next to impossible.
   */
  isFirst?: boolean
  /** NATS knows a record that comes again by it. */
  id?: string
}

/** Where the records of a stream are: from the first place to the one behind the last. */
export interface StreamSpan {
  first: number
  end: number
  count: number
}

type Code = number | undefined

/** The second one comes from NATS 2.11 on, while another record of the subject is on its way to the replicas. */
const WRONG_LAST = new Set<Code>([10_071, 10_164])
/** A hole between records; beyond either end of them, but also that erasing failed for another reason. */
const NOT_ERASED = new Set<Code>([10_043, 10_057])
const FULL = new Set<Code>([10_047, 10_077, 10_023, 10_122])
const DIFFERENT = 10_058
/** Of a subject, so that it can be written again and again. */
const CLOCK = 'clock'
/** How often, and how many times, a stream is looked at whose replicas have changed: until they have a leader. */
const [LOOK_AGAIN, LOOKS] = [100, 100]

/** Records that NATS keeps, in one stream: the last of a subject, the next of one, and a compare-and-set. */
export class StreamStore {
  readonly #link: Link
  readonly #name: string
  readonly #base: string
  readonly #config: Partial<StreamConfig>
  #isPrepared = false

  /** The names of all its subjects begin with `base`. */
  private constructor (link: Link, name: string, base: string, config: Partial<StreamConfig>) {
    this.#link = link
    this.#name = name
    this.#base = base
    this.#config = { ...config, name, subjects: [`${base}>`], num_replicas: link.replicas, discard: DiscardPolicy.New }
  }

  /** As the key-value buckets of NATS are, so that their tools read it; but erased records leave no marks. */
  static bucket (link: Link, name: string, config: Partial<StreamConfig> = {}): StreamStore {
    const bucket = `${link.prefix}_${name}`
    return new StreamStore(link, `KV_${bucket}`, `$KV.${bucket}.`, { max_msgs_per_subject: 1, ...config })
  }

  static stream (link: Link, name: string, config: Partial<StreamConfig> = {}): StreamStore {
    return new StreamStore(link, `${link.prefix}_${name}`, `${link.prefix}.${name}.`, config)
  }

  /** Makes the stream. One that is there becomes as this node wants it once, when the node starts; nodes with other options leave it so. */
  async prepare (manager: JetStreamManager): Promise<void> {
    try {
      await manager.streams.add(this.#config as { name: string })
    } catch (error) {
      if (codeOf(error) !== DIFFERENT) throw error
      if (!this.#isPrepared) await this.#change(manager)
    }
    this.#isPrepared = true
  }

  /** Undefined: somebody else was there before. `fresh` is false when NATS knew the record already. */
  async append (subject: string, data: Uint8Array | string, { after, isFirst, id }: AppendOptions = {}): Promise<{ seq: number, fresh: boolean } | undefined> {
    if (this.#link.up && data.length > this.#link.largest) throw new Failure('too-large')
    return await this.#ask(async manager => {
      const { seq, duplicate } = await manager.jetstream().publish(this.#base + subject, data, {
        ...(id !== undefined && { msgID: id }),
        ...(after !== undefined && { expect: { lastSubjectSequence: after } }),
        ...(isFirst && { expect: { lastSubjectSequence: 0 } })
      })
      return { seq, fresh: !duplicate }
    }, WRONG_LAST)
  }

  async last (subject: string): Promise<StoredRecord | undefined> {
    return await this.#get({ last_by_subj: this.#base + subject })
  }

  /** The first record of a subject at this place or behind it. */
  async next (subject: string, from: number): Promise<StoredRecord | undefined> {
    return await this.#get({ next_by_subj: this.#base + subject, seq: from })
  }

  async at (seq: number): Promise<StoredRecord | undefined> {
    return seq > 0 ? await this.#get({ seq }) : undefined // NATS answers 0 with "bad request"
  }

  /**
   * Erases the record at this place, if it is of the subject and the expected one. False: it is not, or not any more.
   * It is read first: before NATS 2.11.10, erasing beyond the last place makes all replicas of a stream begin anew.
   */
  async erase (subject: string, seq: number, isExpected: (stored: StoredRecord) => boolean = () => true): Promise<boolean> {
    const stored = await this.at(seq)
    if (!stored || stored.subject !== subject || !isExpected(stored)) return false
    return await this.remove(stored)
  }

  /** Erases a record that was read a moment ago. False: somebody else was quicker. */
  async remove ({ seq }: StoredRecord): Promise<boolean> {
    if (await this.#ask(manager => manager.streams.deleteMessage(this.#name, seq, false), NOT_ERASED)) return true
    if (await this.at(seq)) throw new Failure('unreachable', { message: `The record ${seq} of the stream ${this.#name} cannot be erased` })
    return false
  }

  /** What time it is at NATS, which notes it with each record that it writes. */
  async time (): Promise<number | undefined> {
    await this.append(CLOCK, '')
    const found = await this.#find({ last_by_subj: this.#base + CLOCK })
    return found?.time.getTime()
  }

  async span (): Promise<StreamSpan> {
    const { state } = await this.#ask(manager => manager.streams.info(this.#name)) as { state: { first_seq: number, last_seq: number, messages: number } }
    return { first: state.first_seq, end: state.last_seq + 1, count: state.messages }
  }

  /** The subjects that there are records of, and how many of each. */
  async subjects (filter: string): Promise<Record<string, number>> {
    const { state } = await this.#ask(manager => manager.streams.info(this.#name, { subjects_filter: this.#base + filter })) as { state: { subjects?: Record<string, number> } }
    return state.subjects ?? {}
  }

  async #get (query: MsgRequest | Required<NextMsgRequest>): Promise<StoredRecord | undefined> {
    const found = await this.#find(query)
    return found && { seq: found.seq, subject: found.subject.slice(this.#base.length), data: found.data }
  }

  async #find (query: MsgRequest | Required<NextMsgRequest>): Promise<StoredMsg | undefined> {
    // from the one that leads, and not `direct`: a follower may not know of it yet
    return await this.#ask(manager => manager.streams.getMessage(this.#name, query as MsgRequest)) ?? undefined
  }

  /** What others have set in the stream, and this node says nothing of, stays. */
  async #change (manager: JetStreamManager): Promise<void> {
    const { config } = await manager.streams.info(this.#name)
    const is = config as unknown as Record<string, unknown>
    const changes = Object.entries(this.#config).filter(([key, value]) => JSON.stringify(is[key]) !== JSON.stringify(value))
    if (changes.length === 0) return
    try {
      await manager.streams.update(this.#name, Object.fromEntries(changes))
    } catch (error) {
      const list = changes.map(([key, value]) => `${key} from ${is[key]} to ${value}`).join(', ')
      throw new Error(`the stream ${this.#name} cannot be changed (${list}): ${(error as Error).message}`, { cause: error })
    }
    for (let looks = 0; looks < LOOKS && !await this.#isLed(manager); looks++) await sleep(LOOK_AGAIN)
  }

  /** A server alone needs no leader. */
  async #isLed (manager: JetStreamManager): Promise<boolean> {
    const { cluster } = await manager.streams.info(this.#name)
    return cluster === undefined || cluster.leader !== undefined
  }

  /** Undefined where NATS refuses with a code that was to be expected. */
  async #ask<T> (work: (manager: JetStreamManager) => Promise<T>, expected?: Set<Code>): Promise<T | undefined> {
    try {
      return await this.#link.manage(work)
    } catch (error) {
      const code = codeOf(error)
      if (code !== undefined && expected?.has(code)) return undefined
      throw FULL.has(code) ? new Failure('store-full') : new Failure('unreachable', { message: (error as Error).message })
    }
  }
}

function codeOf (error: unknown): Code {
  return error instanceof JetStreamApiError ? error.code : undefined
}
