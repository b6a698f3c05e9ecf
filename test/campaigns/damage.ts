import { cp, mkdtemp, open, readdir, rm, stat, truncate } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { ClassicLevel } from 'classic-level'
import type { Letter, Mailbox, StoredLetter } from '../../lib/storage/mailbox.ts'
import { diskMailbox } from '../../lib/storage/disk/index.ts'
import { seededRandom, command, Verdict, type Outcome } from './campaign.ts'
import { Host, quietApp, type HostedApp } from './host.ts'

interface Size extends Record<string, number> {
  flips: number
  truncations: number
  seed: number
}

/** The bodies of the acknowledged letters that wait, by device and id. */
type Promised = Map<string, Map<string, string>>

/** What was found in a damaged folder. */
interface Trial {
  /** Promised letters that are not delivered. */
  lost: number
  /** Settled letters that are delivered again. */
  risen: number
  wrong: number
  reports: number
  /** How often the process ended before all letters were read. */
  crashes: number
  error?: string
}

const DEVICES = 10
const ROUNDS = 5
const LETTERS_PER_ROUND = 20
const LIMITS = { letters: 1_000, bytes: 10_000_000 }
/** The third start checks the files. */
const MAX_CRASHES = 2
const MAX_SILENT_SHARE = 0.02
/** In a short run that many more may be chance: at a share of 0.01, one run of 10,000 has as many. */
const CHANCE_SILENT = 4
const NOTHING_FOUND = { lost: 0, risen: 0, wrong: 0, reports: 0 }
const MAX_RETRIES = 20
const RETRY_DELAY_MS = 100
/** Files without records: locks, and the log that LevelDB keeps of itself. */
const UNUSED_FILES = new Set(['LOCK', 'LOG', 'LOG.old', 'lock', 'lost', 'starts'])

/**
 * Damages copies of a folder, each at one place. No wrong bytes may be delivered; the process starts again, at the third attempt at the latest, also after
 * LevelDB has merged all of its files; and what is lost is reported, with few exceptions that are counted.
 */
export async function damage ({ flips, truncations, seed }: Size): Promise<Outcome> {
  const random = seededRandom(seed)
  const verdict = new Verdict()
  const root = await mkdtemp(join(tmpdir(), 'damage-'))
  const [sound, whole, torn] = ['sound', 'whole', 'torn'].map(name => join(root, name)) as [string, string, string]
  const reader = new Reader(await fill(sound, random))
  await cp(sound, whole, { recursive: true })
  verdict.same('an undamaged folder', await reader.look(whole), { ...NOTHING_FOUND, crashes: 0 })
  const files = await usedFiles(sound, whole)

  const count = { reported: 0, harmless: 0, silent: 0, crashed: 0, lost: 0, risen: 0 }
  for (let number = 0; number < flips + truncations; number++) {
    await cp(sound, torn, { recursive: true })
    const what = await (number < flips ? flip : cut)(torn, pick(files, random), random)
    const trial = await reader.look(torn)
    const crashes = await reader.merge(torn)
    const again = await reader.look(torn)
    const found = `seed ${seed}, number ${number}, ${what}: ${JSON.stringify(trial)}, and once merged, which ended ${crashes} processes: ${JSON.stringify(again)}`
    verdict.holds(found, [trial, again].every(isRight))
    if (trial.crashes + crashes + again.crashes > 0) count.crashed++
    if (trial.reports + again.reports > 0) count.reported++
    else if (again.lost + again.risen > 0) count.silent++
    else count.harmless++
    count.lost += again.lost
    count.risen += again.risen
    await rm(torn, { recursive: true })
  }
  await reader.stop()
  await rm(root, { recursive: true })
  verdict.within('damages that lost letters without a report', count.silent, CHANCE_SILENT + (flips + truncations) * MAX_SILENT_SHARE)
  const line = `damage: ${flips} bits flipped, ${truncations} files cut short, each in a folder of ${DEVICES * ROUNDS * LETTERS_PER_ROUND} letters: ` +
    `${count.reported} reported, ${count.harmless} without a loss, ${count.silent} lost letters without a report; LevelDB ended the process after ${count.crashed}; ` +
    `${count.lost} letters lost, ${count.risen} delivered again, wrong bytes 0 times (seed ${seed})`
  return { line, wrong: verdict.wrong }
}

function isRight ({ wrong, crashes, error }: Trial): boolean {
  return error === undefined && wrong === 0 && crashes <= MAX_CRASHES
}

/** Reads folders in a process of its own, because LevelDB may end it. */
class Reader {
  readonly #promised: Promised
  #host: Promise<Host> | undefined

  constructor (promised: Promised) {
    this.#promised = promised
  }

  async look (path: string): Promise<Trial> {
    return await this.#ask('look', path)
  }

  /** Has LevelDB merge all of its files, as it does in time; how many processes it ended over that. */
  async merge (path: string): Promise<number> {
    const { crashes } = await this.#ask('merge', path)
    return crashes
  }

  async stop (): Promise<void> {
    await (await this.#host)?.stop()
  }

  async #ask (command: string, path: string): Promise<Trial> {
    for (let crashes = 0; crashes <= MAX_CRASHES; crashes++) {
      this.#host ??= Host.start(import.meta.url, [...this.#promised].map(([deviceId, letters]) => [deviceId, [...letters]]))
      try {
        return { ...await (await this.#host).ask(command, path), crashes }
      } catch {
        this.#host = undefined
      }
    }
    return { ...NOTHING_FOUND, crashes: MAX_CRASHES + 1, error: 'the process ends at each start' }
  }
}

async function prepare (settings: Array<[string, Array<[string, string]>]>): Promise<HostedApp> {
  const promised: Promised = new Map(settings.map(([deviceId, letters]) => [deviceId, new Map(letters)]))
  return { app: quietApp(), commands: { look: path => look(path, promised), merge } }
}

async function merge (path: string): Promise<void> {
  const db = new ClassicLevel(path)
  await db.open()
  await db.compactRange('!', '~')
  await db.close()
}

/** Puts letters in several rounds, settles some of them, and copies the folder while it is in use, as a kill leaves it. */
async function fill (path: string, random: () => number): Promise<Promised> {
  const promised: Promised = new Map()
  const live = `${path}.live`
  for (let round = 0; round < ROUNDS; round++) {
    const mailbox = await diskMailbox({ path: live })
    for (let number = 0; number < LETTERS_PER_ROUND; number++) {
      await Promise.all(Array.from({ length: DEVICES }, (_, device) => keep(mailbox, promised, `d${device}`, `${round}-${number}`, random)))
    }
    if (round === ROUNDS - 1) await cp(live, path, { recursive: true })
    await mailbox.close!()
  }
  await rm(live, { recursive: true })
  return promised
}

async function keep (mailbox: Mailbox, promised: Promised, deviceId: string, id: string, random: () => number): Promise<void> {
  const letters = promised.get(deviceId) ?? new Map<string, string>()
  promised.set(deviceId, letters)
  const body = JSON.stringify({ id, deviceId, filling: 'x'.repeat(Math.floor(random() ** 4 * 2_000)) })
  const letter: Letter = { id, body, expiresAt: Date.now() + 7 * 86_400_000 }
  await mailbox.put(deviceId, letter, LIMITS)
  letters.set(id, body)
  const [oldest] = letters.keys()
  if (random() < 0.3 && await mailbox.settle(deviceId, oldest!, 'delivered')) letters.delete(oldest!)
}

async function look (path: string, promised: Promised): Promise<Omit<Trial, 'crashes'>> {
  const trial: Omit<Trial, 'crashes'> = { ...NOTHING_FOUND }
  try {
    const mailbox = await diskMailbox({ path })
    mailbox.onDamage!(() => { trial.reports++ })
    for (const [deviceId, letters] of promised) await compare(mailbox, deviceId, letters, trial)
    // whatever was damaged, a new letter is kept and delivered
    await retried(() => mailbox.put('next', { id: `${Math.random()}`, body: '1', expiresAt: Date.now() + 60_000 }, LIMITS))
    const next = await retried(() => lettersOf(mailbox, 'next'))
    if (!next.some(({ body }) => body === '1')) trial.error = 'a new letter is not delivered'
    await mailbox.close!()
  } catch (error) {
    trial.error = String(error)
  }
  return trial
}

/** While the mailbox mends what it has met, reads and writes fail; their callers try again. */
async function retried<T> (work: () => Promise<T>): Promise<T> {
  for (let retries = 0; ; retries++) {
    try {
      return await work()
    } catch (error) {
      if (retries === MAX_RETRIES) throw error
      await sleep(RETRY_DELAY_MS)
    }
  }
}

async function lettersOf (mailbox: Mailbox, deviceId: string): Promise<StoredLetter[]> {
  const letters: StoredLetter[] = []
  for await (const letter of mailbox.letters(deviceId)) letters.push(letter)
  return letters
}

async function compare (mailbox: Mailbox, deviceId: string, letters: Map<string, string>, trial: Omit<Trial, 'crashes'>): Promise<void> {
  const seen = new Set<string>()
  let last = 0
  for (const { id, body, position } of await retried(() => lettersOf(mailbox, deviceId))) {
    seen.add(id)
    const wanted = letters.get(id)
    if (wanted === undefined) trial.risen++
    else if (wanted !== body || position <= last) trial.wrong++
    last = position
  }
  for (const id of letters.keys()) if (!seen.has(id)) trial.lost++
}

interface UsedFile {
  name: string
  size: number
}

async function flip (path: string, { name, size }: UsedFile, random: () => number): Promise<string> {
  const bit = Math.floor(random() * size * 8)
  const file = await open(join(path, name), 'r+')
  const byte = Buffer.alloc(1)
  await file.read(byte, 0, 1, bit >> 3)
  byte[0]! ^= 1 << (bit & 7)
  await file.write(byte, 0, 1, bit >> 3)
  await file.close()
  return `bit ${bit} of ${name} flipped`
}

async function cut (path: string, { name, size }: UsedFile, random: () => number): Promise<string> {
  const length = Math.floor(random() * size)
  await truncate(join(path, name), length)
  return `${name} cut to ${length} of ${size}`
}

/** The files that hold something, without tables to which nothing refers: LevelDB removes those when it is opened. */
async function usedFiles (path: string, opened: string): Promise<UsedFile[]> {
  const left = await readdir(opened)
  const names = (await readdir(path)).filter(name => !UNUSED_FILES.has(name) && (!name.endsWith('.ldb') || left.includes(name)))
  const files = await Promise.all(names.toSorted().map(async name => ({ name, size: (await stat(join(path, name))).size })))
  return files.filter(({ size }) => size > 0)
}

/** Half the time any of the files, half the time one by its size: the small ones matter as much. */
function pick (files: UsedFile[], random: () => number): UsedFile {
  if (random() < 0.5) return files[Math.floor(random() * files.length)]!
  let at = random() * files.reduce((sum, { size }) => sum + size, 0)
  return files.find(({ size }) => (at -= size) < 0)!
}

await command(import.meta.url, { flips: 1_000, truncations: 200, seed: Date.now() }, damage, prepare)
