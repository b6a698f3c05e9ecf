import { DiscardPolicy, JetStreamApiError, type JetStreamManager, type MsgRequest, type NextMsgRequest, type StreamConfig } from '@nats-io/jetstream'
import { Failure } from '../errors.ts'
import type { Link } from './link.ts'

export interface Stored {
  /** Its place in the stream: grows, and never comes again. */
  seq: number
  subject: string
  data: Uint8Array
}

export interface Append {
  /** The place that the last record of the subject must have; 0: there must be none. */
  after?: number
  /** NATS knows a record that comes again by it. */
  id?: string
}

const WRONG_LAST = 10_071
const ERASED = 10_057
const FULL = new Set<number | undefined>([10_047, 10_077, 10_023, 10_122])

/** Records that NATS keeps, in one stream: the last of a subject, the next of one, and a compare-and-set. */
export class Records {
  readonly #link: Link
  readonly #name: string
  readonly #base: string
  readonly #config: Partial<StreamConfig>

  /** The names of all its subjects begin with `base`. */
  private constructor (link: Link, name: string, base: string, config: Partial<StreamConfig>) {
    this.#link = link
    this.#name = name
    this.#base = base
    this.#config = { ...config, name, subjects: [`${base}>`], num_replicas: link.replicas, discard: DiscardPolicy.New }
  }

  /** As the key-value buckets of NATS are, so that their tools read it; but erased records leave no marks. */
  static bucket (link: Link, name: string, config: Partial<StreamConfig> = {}): Records {
    const bucket = `${link.prefix}_${name}`
    return new Records(link, `KV_${bucket}`, `$KV.${bucket}.`, { max_msgs_per_subject: 1, ...config })
  }

  static stream (link: Link, name: string, config: Partial<StreamConfig> = {}): Records {
    return new Records(link, `${link.prefix}_${name}`, `${link.prefix}.${name}.`, config)
  }

  /** Makes the stream, if it is not there. */
  async prepare (manager: JetStreamManager): Promise<void> {
    await manager.streams.add(this.#config as { name: string })
  }

  /** Undefined: somebody else was there before. `fresh` is false when NATS knew the record already. */
  async append (subject: string, data: Uint8Array | string, { after, id }: Append = {}): Promise<{ seq: number, fresh: boolean } | undefined> {
    if (this.#link.up && data.length > this.#link.largest) throw new Failure('too-large')
    return await this.#ask(async manager => {
      const { seq, duplicate } = await manager.jetstream().publish(this.#base + subject, data, {
        ...(id !== undefined && { msgID: id }),
        ...(after !== undefined && { expect: { lastSubjectSequence: after } })
      })
      return { seq, fresh: !duplicate }
    }, WRONG_LAST)
  }

  async last (subject: string): Promise<Stored | undefined> {
    return await this.#get({ last_by_subj: this.#base + subject })
  }

  /** The first record of a subject at this place or behind it. */
  async next (subject: string, from: number): Promise<Stored | undefined> {
    return await this.#get({ next_by_subj: this.#base + subject, seq: from })
  }

  async at (seq: number): Promise<Stored | undefined> {
    return await this.#get({ seq })
  }

  /** False: it was gone already. */
  async erase (_subject: string, seq: number): Promise<boolean> {
    return await this.#ask(manager => manager.streams.deleteMessage(this.#name, seq, false), ERASED) ?? false
  }

  /** The subjects that there are records of, and how many of each. */
  async subjects (filter: string): Promise<Record<string, number>> {
    const { state } = await this.#ask(manager => manager.streams.info(this.#name, { subjects_filter: this.#base + filter })) as { state: { subjects?: Record<string, number> } }
    return state.subjects ?? {}
  }

  async #get (query: MsgRequest | Required<NextMsgRequest>): Promise<Stored | undefined> {
    // from the one that leads, and not `direct`: a follower may not know of it yet
    const found = await this.#ask(manager => manager.streams.getMessage(this.#name, query as MsgRequest))
    return found ? { seq: found.seq, subject: found.subject, data: found.data } : undefined
  }

  /** Undefined where NATS refuses with the code that was to be expected. */
  async #ask<T> (work: (manager: JetStreamManager) => Promise<T>, expected?: number): Promise<T | undefined> {
    try {
      return await this.#link.manage(work)
    } catch (error) {
      const code = error instanceof JetStreamApiError ? error.code : undefined
      if (code !== undefined && code === expected) return undefined
      throw FULL.has(code) ? new Failure('store-full') : new Failure('unreachable', { message: (error as Error).message })
    }
  }
}
