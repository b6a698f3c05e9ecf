import type { Attempt, LossWindows } from './loss-windows.ts'

/** What became of the letters to one device, or to all. */
export interface LetterTally {
  acknowledged: number
  seen: number
  lost: number
  twice: number
  unexpected: number
  outOfOrder: number
  /** Letters that the engine may lose although it acknowledged them, and how many of them it lost. */
  mayBeLost: number
  forgotten: number
  /** Letters seen twice, because the engine forgot the first attempt. */
  repeated: number
}

/** Compares the letters that a device received with those that were sent to it, both by their numbers. */
export function tallyOf (attempts: Attempt[], seen: number[], windows: LossWindows): LetterTally {
  const received = new Set(seen)
  const firsts = [...received]
  const acknowledged = [...attempts.keys()].filter(number => attempts[number]!.acknowledgedAt !== undefined)
  const mayBeLost = acknowledged.filter(number => windows.mayLose(attempts[number]!))
  const forgotten = mayBeLost.filter(number => !received.has(number)).length
  const isRepeat = (number: number) => number < attempts.length && windows.mayRepeat(attempts[number]!)
  const repeated = seen.filter((number, at) => seen.indexOf(number) < at && isRepeat(number)).length
  return {
    acknowledged: acknowledged.length,
    seen: seen.length,
    lost: acknowledged.filter(number => !received.has(number)).length - forgotten,
    twice: seen.length - received.size - repeated,
    unexpected: firsts.filter(number => number >= attempts.length).length,
    outOfOrder: firsts.filter((number, at) => at > 0 && number < firsts[at - 1]!).length,
    mayBeLost: mayBeLost.length,
    forgotten,
    repeated
  }
}

export function sumOf (tallies: LetterTally[]): LetterTally {
  const sum: LetterTally = { acknowledged: 0, seen: 0, lost: 0, twice: 0, unexpected: 0, outOfOrder: 0, mayBeLost: 0, forgotten: 0, repeated: 0 }
  for (const tally of tallies) for (const what of Object.keys(sum) as Array<keyof LetterTally>) sum[what] += tally[what]
  return sum
}

/** What the engine made of its permission to lose; empty if it had none. */
export function describeLosses ({ mayBeLost, forgotten, repeated }: Pick<LetterTally, 'mayBeLost' | 'forgotten' | 'repeated'>): string {
  return mayBeLost + repeated === 0 ? '' : `; ${mayBeLost} acknowledged when the engine may lose letters: lost ${forgotten}, and ${repeated} not acknowledged were seen twice`
}
