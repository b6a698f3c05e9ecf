import { cp, mkdtemp, open, readdir, rm, stat, truncate } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Letter, Mailbox } from '../../lib/storage/mailbox.ts'
import { diskMailbox } from '../../lib/storage/disk/index.ts'
import { readManifest } from '../../lib/storage/disk/manifest.ts'
import { chance, command, Verdict, type Outcome } from './campaign.ts'

interface Size extends Record<string, number> {
  flips: number
  truncations: number
  seed: number
}

/** What was promised: the body of each letter that waits, by device and id. */
type Promised = Map<string, Map<string, string>>

interface Trial {
  /** Letters that were promised and are not handed out; letters that are and should not be. */
  lost: number
  risen: number
  wrong: number
  reports: number
  error?: string
}

const DEVICES = 10
const ROUNDS = 5
const PER_ROUND = 20
const CAPS = { letters: 1_000, bytes: 10_000_000 }
/** What holds no records: the database's lock and its own log. */
const idle = new Set(['LOCK', 'LOG', 'LOG.old', 'lock', 'lost'])

/** Damages copies of one folder, bit by bit: what is handed out is what was kept, and what is lost is told. */
export async function damage ({ flips, truncations, seed }: Size): Promise<Outcome> {
  const random = chance(seed)
  const verdict = new Verdict()
  const root = await mkdtemp(join(tmpdir(), 'damage-'))
  const sound = join(root, 'sound')
  const promised = await fill(sound, random)
  await cp(sound, join(root, 'whole'), { recursive: true })
  verdict.same('an undamaged folder', await look(join(root, 'whole'), promised), { lost: 0, risen: 0, wrong: 0, reports: 0 })

  let [told, harmless, lost] = [0, 0, 0]
  for (let number = 0; number < flips + truncations; number++) {
    const path = join(root, 'torn')
    await cp(sound, path, { recursive: true })
    const what = await (number < flips ? flip : cut)(path, random)
    const trial = await look(path, promised)
    verdict.holds(`seed ${seed}, number ${number}, ${what}: ${JSON.stringify(trial)}`, isRight(trial))
    if (trial.reports > 0) told++
    else harmless++
    lost += trial.lost
    const again = await look(path, promised)
    verdict.holds(`seed ${seed}, number ${number}, ${what}, and ${JSON.stringify(trial)}, opened again: ${JSON.stringify(again)}`, again.error === undefined && again.wrong === 0 && again.lost === trial.lost)
    await rm(path, { recursive: true })
  }
  await rm(root, { recursive: true })
  const line = `damage: ${flips} bits flipped, ${truncations} files cut short, each in a folder of ${DEVICES * ROUNDS * PER_ROUND} letters: ` +
    `${told} times told of damage, ${harmless} times nothing was harmed; ${lost} letters lost, wrong bytes 0 times (seed ${seed})`
  return { line, wrong: verdict.wrong }
}

function isRight ({ lost, risen, wrong, reports, error }: Trial): boolean {
  return error === undefined && wrong === 0 && (reports > 0 || lost + risen === 0)
}

/** Keeps letters in several goes, some of them settled, and copies the folder while it is in use, as a kill leaves it. */
async function fill (path: string, random: () => number): Promise<Promised> {
  const promised: Promised = new Map()
  const live = `${path}.live`
  for (let round = 0; round < ROUNDS; round++) {
    const mailbox = await diskMailbox({ path: live })
    for (let number = 0; number < PER_ROUND; number++) {
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
  await mailbox.put(deviceId, letter, CAPS)
  letters.set(id, body)
  const [oldest] = letters.keys()
  if (random() < 0.3 && await mailbox.settle(deviceId, oldest!, 'delivered')) letters.delete(oldest!)
}

async function look (path: string, promised: Promised): Promise<Trial> {
  const trial: Trial = { lost: 0, risen: 0, wrong: 0, reports: 0 }
  try {
    const mailbox = await diskMailbox({ path })
    mailbox.onDamage!(() => { trial.reports++ })
    for (const [deviceId, letters] of promised) await compare(mailbox, deviceId, letters, trial)
    // what comes next is kept and handed out, whatever was damaged
    await mailbox.put('next', { id: `${Math.random()}`, body: '1', expiresAt: Date.now() + 60_000 }, CAPS)
    let next = 0
    for await (const { body } of mailbox.letters('next')) if (body === '1') next++
    if (next === 0) trial.error = 'a new letter is not handed out'
    await mailbox.close!()
  } catch (error) {
    trial.error = String(error)
  }
  return trial
}

async function compare (mailbox: Mailbox, deviceId: string, letters: Map<string, string>, trial: Trial): Promise<void> {
  const seen = new Set<string>()
  let last = 0
  for await (const { id, body, position } of mailbox.letters(deviceId)) {
    seen.add(id)
    const wanted = letters.get(id)
    if (wanted === undefined) trial.risen++
    else if (wanted !== body || position <= last) trial.wrong++
    last = position
  }
  for (const id of letters.keys()) if (!seen.has(id)) trial.lost++
}

async function flip (path: string, random: () => number): Promise<string> {
  const { name, size } = await pick(path, random)
  const bit = Math.floor(random() * size * 8)
  const file = await open(join(path, name), 'r+')
  const byte = Buffer.alloc(1)
  await file.read(byte, 0, 1, bit >> 3)
  byte[0]! ^= 1 << (bit & 7)
  await file.write(byte, 0, 1, bit >> 3)
  await file.close()
  return `bit ${bit} of ${name} flipped`
}

async function cut (path: string, random: () => number): Promise<string> {
  const { name, size } = await pick(path, random)
  const length = Math.floor(random() * size)
  await truncate(join(path, name), length)
  return `${name} cut to ${length} of ${size}`
}

/** Half the time any file that is in use, half the time one by its size: the small ones matter as much. */
async function pick (path: string, random: () => number): Promise<{ name: string, size: number }> {
  const files = []
  const tables = (await readManifest(path))!.tables!
  const isUsed = (name: string) => !idle.has(name) && (!name.endsWith('.ldb') || tables.has(Number.parseInt(name, 10)))
  for (const name of (await readdir(path)).filter(isUsed).toSorted()) files.push({ name, size: (await stat(join(path, name))).size })
  const full = files.filter(({ size }) => size > 0)
  if (random() < 0.5) return full[Math.floor(random() * full.length)]!
  let at = random() * full.reduce((sum, { size }) => sum + size, 0)
  return full.find(({ size }) => (at -= size) < 0)!
}

await command(import.meta.url, { flips: 1_000, truncations: 200, seed: Date.now() }, damage)
