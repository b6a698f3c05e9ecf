import { setTimeout as sleep } from 'node:timers/promises'
import { DiscardPolicy, JetStreamApiError, type JetStreamManager, type MsgRequest, type NextMsgRequest, type StoredMsg, type StreamConfig } from '@nats-io/jetstream'
import { Failure } from '../protocol/errors.ts'
import type { Link } from './link.ts'

export interface StoredRecord {
  /** Position in the stream: grows, and is never reused. */
  seq: number
  /** Without the prefix of the stream. */
  subject: string
  data: Uint8Array
}

export interface AppendOptions {
  /**
   * Expected position of the last record of the subject; 0: there must be none. Before NATS 2.10.19, if NATS refuses a write after 0, the replicas of
   * the stream disagree after the next server failure and may lose records: use 0 only where a refusal is next to impossible.
   */
  after?: number | undefined
  /** NATS deduplicates records by it. */
  id?: string
}

/** The positions of a stream: from the first to before the end. */
export interface StreamSpan {
  first: number
  end: number
  count: number
}

type ErrorCode = number | undefined

/** NATS 2.11 and later return the second code while another record of the subject is being replicated. */
const WRONG_LAST_CODES = new Set<ErrorCode>([10_071, 10_164])
/** The first: the position is a gap. The second: it is outside the stream, or erasing failed for another reason. */
const NOT_ERASED_CODES = new Set<ErrorCode>([10_043, 10_057])
const FULL_CODES = new Set<ErrorCode>([10_047, 10_077, 10_023, 10_122])
const STREAM_EXISTS_CODE = 10_058
/** The subject of the record that is written to read the clock of NATS. */
const CLOCK_SUBJECT = 'clock'
/** After its replicas have changed, a stream is polled until it has a leader. */
const LEADER_POLL_INTERVAL_MS = 100
const MAX_LEADER_POLLS = 100

/** Records in one JetStream stream: read the last or the next of a subject, append with compare-and-set, erase. */
export class StreamStore {
  readonly #link: Link
  readonly #name: string
  readonly #subjectPrefix: string
  readonly #config: Partial<StreamConfig>
  #isPrepared = false
  #isReachable = true

  /** `subjectPrefix` is the prefix of all its subjects. */
  private constructor (link: Link, name: string, subjectPrefix: string, config: Partial<StreamConfig>) {
    this.#link = link
    this.#name = name
    this.#subjectPrefix = subjectPrefix
    this.#config = { ...config, name, subjects: [`${subjectPrefix}>`], num_replicas: link.replicas, discard: DiscardPolicy.New }
  }

  /** Named like a key-value bucket of NATS, so that its tools can read it. Erased records leave no tombstones. */
  static bucket (link: Link, name: string, config: Partial<StreamConfig> = {}): StreamStore {
    const bucket = `${link.prefix}_${name}`
    return new StreamStore(link, `KV_${bucket}`, `$KV.${bucket}.`, { max_msgs_per_subject: 1, ...config })
  }

  static stream (link: Link, name: string, config: Partial<StreamConfig> = {}): StreamStore {
    return new StreamStore(link, `${link.prefix}_${name}`, `${link.prefix}.${name}.`, config)
  }

  /** False: the last request failed, and not because of what it asked. */
  get isReachable (): boolean {
    return this.#isReachable
  }

  /** Creates the stream. An existing one is changed only when the node starts, so that running nodes with older options do not change it back. */
  async prepare (manager: JetStreamManager): Promise<void> {
    try {
      await manager.streams.add(this.#config as { name: string })
    } catch (error) {
      if (codeOf(error) !== STREAM_EXISTS_CODE) throw error
      if (!this.#isPrepared) await this.#change(manager)
    }
    this.#isPrepared = true
  }

  /** Resolves with undefined if another record was appended first. `fresh` is false if NATS recognized the record by its id. */
  async append (subject: string, data: Uint8Array | string, { after, id }: AppendOptions = {}): Promise<{ seq: number, fresh: boolean } | undefined> {
    if (this.#link.up && data.length > this.#link.maxPayload) throw new Failure('too-large')
    return await this.#request(async manager => {
      const { seq, duplicate } = await manager.jetstream().publish(this.#subjectPrefix + subject, data, {
        ...(id !== undefined && { msgID: id }),
        ...(after !== undefined && { expect: { lastSubjectSequence: after } })
      })
      return { seq, fresh: !duplicate }
    }, WRONG_LAST_CODES)
  }

  async last (subject: string): Promise<StoredRecord | undefined> {
    return await this.#get({ last_by_subj: this.#subjectPrefix + subject })
  }

  /** The first record of a subject at or after this position. */
  async next (subject: string, from: number): Promise<StoredRecord | undefined> {
    return await this.#get({ next_by_subj: this.#subjectPrefix + subject, seq: from })
  }

  async at (seq: number): Promise<StoredRecord | undefined> {
    return seq > 0 ? await this.#get({ seq }) : undefined // NATS answers 0 with "bad request"
  }

  /**
   * Erases the record at this position if it has the subject and is the expected one. Resolves with false otherwise.
   * It is read first: before NATS 2.11.10, erasing beyond the last position makes all replicas of a stream reset.
   */
  async erase (subject: string, seq: number, isExpected: (stored: StoredRecord) => boolean = () => true): Promise<boolean> {
    const stored = await this.at(seq)
    if (!stored || stored.subject !== subject || !isExpected(stored)) return false
    return await this.remove(stored)
  }

  /** Erases a record that was just read. Resolves with false if it was erased meanwhile. */
  async remove ({ seq }: StoredRecord): Promise<boolean> {
    if (await this.#request(manager => manager.streams.deleteMessage(this.#name, seq, false), NOT_ERASED_CODES)) return true
    if (await this.at(seq)) throw new Failure('unreachable', { message: `The record ${seq} of the stream ${this.#name} cannot be erased` })
    return false
  }

  /** The time at NATS, which stores it with each record. */
  async time (): Promise<number | undefined> {
    await this.append(CLOCK_SUBJECT, '')
    const found = await this.#find({ last_by_subj: this.#subjectPrefix + CLOCK_SUBJECT })
    return found?.time.getTime()
  }

  async span (): Promise<StreamSpan> {
    const { state } = await this.#request(manager => manager.streams.info(this.#name)) as { state: { first_seq: number, last_seq: number, messages: number } }
    return { first: state.first_seq, end: state.last_seq + 1, count: state.messages }
  }

  /** The number of records of each subject. */
  async subjects (filter: string): Promise<Record<string, number>> {
    const { state } = await this.#request(manager => manager.streams.info(this.#name, { subjects_filter: this.#subjectPrefix + filter })) as { state: { subjects?: Record<string, number> } }
    return state.subjects ?? {}
  }

  async #get (query: MsgRequest | Required<NextMsgRequest>): Promise<StoredRecord | undefined> {
    const found = await this.#find(query)
    return found && { seq: found.seq, subject: found.subject.slice(this.#subjectPrefix.length), data: found.data }
  }

  async #find (query: MsgRequest | Required<NextMsgRequest>): Promise<StoredMsg | undefined> {
    // read from the leader, not `direct`: a follower may not have the record yet
    return await this.#request(manager => manager.streams.getMessage(this.#name, query as MsgRequest)) ?? undefined
  }

  /** Changes only what this node configures; other settings of the operator stay. */
  async #change (manager: JetStreamManager): Promise<void> {
    const { config } = await manager.streams.info(this.#name)
    const current = config as unknown as Record<string, unknown>
    const changes = Object.entries(this.#config).filter(([key, value]) => JSON.stringify(current[key]) !== JSON.stringify(value))
    if (changes.length === 0) return
    try {
      await manager.streams.update(this.#name, Object.fromEntries(changes))
    } catch (error) {
      const list = changes.map(([key, value]) => `${key} from ${current[key]} to ${value}`).join(', ')
      throw new Error(`the stream ${this.#name} cannot be changed (${list}): ${(error as Error).message}`, { cause: error })
    }
    for (let polls = 0; polls < MAX_LEADER_POLLS && !await this.#hasLeader(manager); polls++) await sleep(LEADER_POLL_INTERVAL_MS)
  }

  /** A single server has no leader. */
  async #hasLeader (manager: JetStreamManager): Promise<boolean> {
    const { cluster } = await manager.streams.info(this.#name)
    return cluster === undefined || cluster.leader !== undefined
  }

  /** Resolves with undefined if NATS refuses with an expected code. */
  async #request<T> (work: (manager: JetStreamManager) => Promise<T>, expectedCodes?: Set<ErrorCode>): Promise<T | undefined> {
    try {
      const result = await this.#link.manage(work)
      this.#isReachable = true
      return result
    } catch (error) {
      const code = codeOf(error)
      const isAnswer = FULL_CODES.has(code) || (code !== undefined && expectedCodes?.has(code) === true)
      this.#isReachable = isAnswer
      if (!isAnswer) throw new Failure('unreachable', { message: (error as Error).message })
      if (FULL_CODES.has(code)) throw new Failure('store-full')
      return undefined
    }
  }
}

function codeOf (error: unknown): ErrorCode {
  return error instanceof JetStreamApiError ? error.code : undefined
}
