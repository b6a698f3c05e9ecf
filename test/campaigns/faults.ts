import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { ClassicLevel } from 'classic-level'
import { Failure } from '../../lib/protocol/errors.ts'
import type { Ending, Letter, Mailbox } from '../../lib/storage/mailbox.ts'
import { diskMailbox } from '../../lib/storage/disk/index.ts'
import { all } from '../fakes.ts'
import { interceptWrites } from '../writes.ts'
import { seededRandom, command, settled, Verdict, type Outcome } from './campaign.ts'

interface Size extends Record<string, number> {
  runs: number
  seed: number
}

/** The expected state of a stored letter. */
interface ExpectedLetter {
  letter: Letter
  order: number
  status: 'queued' | Ending
}

interface Figures {
  operations: number
  refused: number
  opened: number
}

const ROUNDS = 8
const OPERATIONS = 60
const DEVICES = ['d', 'd1', 'd~']
const LIMITS = { letters: 10_000, bytes: 100_000_000 }
const COLLAPSE_KEYS = ['k', '', '__proto__', 'ü☃']
/** The first expiry; sweeps get a simulated time that starts here. */
const FIRST_EXPIRY_MS = 1_000_000

/** Random puts, settles, replacements, attempts and sweeps while writes fail. The mailbox must match its answers, before and after it is reopened. */
export async function faults ({ runs, seed }: Size): Promise<Outcome> {
  const verdict = new Verdict()
  const random = seededRandom(seed)
  const figures = { operations: 0, refused: 0, opened: 0 }
  const disk = new FaultyDisk(random)
  try {
    for (let number = 0; number < runs; number++) await new FaultRun(`seed ${seed}, run ${number}`, random, disk, verdict, figures).go()
  } finally {
    disk.restore()
  }
  const line = `faults: ${runs} runs, ${figures.operations} operations side by side, ${figures.refused} refused because a write failed (${disk.failed} of ${disk.writes} did), ` +
    `${figures.opened} times opened anew (seed ${seed}); as it was answered each time`
  return { line, wrong: verdict.wrong }
}

/** Makes writes fail at random. */
class FaultyDisk {
  isFaulty = false
  writes = 0
  failed = 0
  readonly restore: () => void
  readonly #random: () => number

  constructor (random: () => number) {
    this.#random = random
    this.restore = interceptWrites((go, db) => this.#write(go, db)).restore
  }

  async #write (go: () => Promise<void>, db: ClassicLevel): Promise<void> {
    this.writes++
    const isFaulty = this.isFaulty && this.#random() < 0.4
    if (!isFaulty || this.#random() < 0.5) await go() // a write that failed may have reached the disk
    if (!isFaulty) return
    this.failed++
    await db.close() // LevelDB refuses writes after a failure until it is reopened
    throw new Error('IO error: No space left on device')
  }
}

class FaultRun {
  readonly #name: string
  readonly #random: () => number
  readonly #disk: FaultyDisk
  readonly #verdict: Verdict
  readonly #figures: Figures
  readonly #expected = new Map<string, ExpectedLetter>()
  #mailbox!: Mailbox
  #put = 0
  #now = FIRST_EXPIRY_MS

  constructor (name: string, random: () => number, disk: FaultyDisk, verdict: Verdict, figures: Figures) {
    this.#name = name
    this.#random = random
    this.#disk = disk
    this.#verdict = verdict
    this.#figures = figures
  }

  async go (): Promise<void> {
    const path = await mkdtemp(join(tmpdir(), 'faults-'))
    this.#mailbox = await diskMailbox({ path })
    for (let round = 0; round < ROUNDS; round++) {
      this.#disk.isFaulty = this.#random() < 0.5
      await Promise.all(Array.from({ length: OPERATIONS }, () => this.#operate()))
      this.#disk.isFaulty = false
      await settled(async () => await this.#isRefused(this.#mailbox.put('healed', { ...this.#letter(), expiresAt: Number.MAX_SAFE_INTEGER }, LIMITS)), undefined)
      await this.#compare(`round ${round}`)
      if (this.#random() < 0.7) continue
      await this.#mailbox.close!()
      this.#mailbox = await diskMailbox({ path })
      this.#mailbox.onDamage!(damage => this.#verdict.wrong.push(`${this.#name}, round ${round}: ${JSON.stringify(damage)}`))
      this.#figures.opened++
      await this.#compare(`round ${round}, opened anew`)
    }
    await this.#mailbox.close!()
    await rm(path, { recursive: true })
  }

  async #operate (): Promise<void> {
    this.#figures.operations++
    for (let turns = this.#pick(8); turns > 0; turns--) await new Promise(resolve => setImmediate(resolve))
    const [which, deviceId] = [this.#random(), DEVICES[this.#pick(DEVICES.length)]!]
    const letterId = `l${Math.max(this.#put - this.#pick(20), 0)}`
    const refused = await this.#isRefused(
      which < 0.5 ? this.#putLetter(deviceId) :
      which < 0.8 ? this.#settle(deviceId, letterId) :
      which < 0.9 ? this.#mailbox.addAttempt(deviceId, letterId) : this.#sweep()
    )
    if (refused) this.#figures.refused++
  }

  async #putLetter (deviceId: string): Promise<void> {
    const letter = this.#letter()
    const order = this.#put
    const { fresh, replaced } = await this.#mailbox.put(deviceId, letter, LIMITS)
    this.#verdict.holds(`${this.#name}: ${letter.id} is new`, fresh)
    this.#expected.set(`${deviceId} ${letter.id}`, { letter, order, status: 'queued' })
    if (replaced) this.#expectEnding(deviceId, replaced.id, 'replaced')
  }

  async #settle (deviceId: string, letterId: string): Promise<void> {
    if (await this.#mailbox.settle(deviceId, letterId, 'delivered')) this.#expectEnding(deviceId, letterId, 'delivered')
  }

  async #sweep (): Promise<void> {
    this.#now += this.#pick(2_000)
    for (const { deviceId, receipt } of await this.#mailbox.sweep(this.#now)) this.#expectEnding(deviceId, receipt.id, 'expired')
  }

  /** Answers of concurrent operations may arrive in another order than their effects, so the check is deferred. */
  #expectEnding (deviceId: string, letterId: string, status: Ending): void {
    setImmediate(() => {
      const known = this.#expected.get(`${deviceId} ${letterId}`)
      if (!known || known.status !== 'queued') this.#verdict.wrong.push(`${this.#name}: ${letterId} ended as ${status}, and was ${known?.status}`)
      else known.status = status
    })
  }

  async #compare (when: string): Promise<void> {
    await new Promise(resolve => setImmediate(resolve))
    const queued = [...this.#expected.values()].filter(({ status }) => status === 'queued')
    this.#verdict.same(`${this.#name}, ${when}: how many wait altogether`, await this.#mailbox.size!(), queued.length + await this.#mailbox.waiting('healed'))
    for (const deviceId of DEVICES) {
      const known = [...this.#expected].filter(([key]) => key.startsWith(`${deviceId} `)).map(([, one]) => one)
      const waiting = known.filter(({ status }) => status === 'queued').toSorted((one, other) => one.order - other.order)
      const found = await all(this.#mailbox.letters(deviceId))
      const what = `${this.#name}, ${when}, ${deviceId}`
      this.#verdict.same(`${what}: the letters`, found.map(({ id }) => id), waiting.map(({ letter }) => letter.id))
      this.#verdict.same(`${what}: how many wait`, await this.#mailbox.waiting(deviceId), waiting.length)
      this.#verdict.holds(`${what}: what is in them`, found.every(({ id, body }) => Buffer.from(body).equals(Buffer.from(this.#expected.get(`${deviceId} ${id}`)?.letter.body ?? ''))))
      for (const { letter, status } of known) this.#verdict.same(`${what}: the receipt of ${letter.id}`, (await this.#mailbox.receipt(deviceId, letter.id))?.status, status)
    }
  }

  #letter (): Letter {
    const body = ['', 'x'.repeat(this.#pick(300)), '☃\n'.repeat(this.#pick(50)), Buffer.alloc(this.#pick(200), 10)][this.#pick(4)]!
    const collapse = this.#random() < 0.4 ? COLLAPSE_KEYS[this.#pick(COLLAPSE_KEYS.length)] : undefined
    return { id: `l${++this.#put}`, body, collapse, expiresAt: FIRST_EXPIRY_MS + this.#pick(60_000) }
  }

  /** True if the operation failed because of the disk. */
  async #isRefused (operation: Promise<unknown>): Promise<true | undefined> {
    try {
      await operation
      return undefined
    } catch (error) {
      if (error instanceof Failure && error.reason === 'store-full') return true
      throw error
    }
  }

  #pick (below: number): number {
    return Math.floor(this.#random() * below)
  }
}

await command(import.meta.url, { runs: 200, seed: Date.now() }, faults)
