/** How many letters may be wrong. */
const MAX_DISTANCE = 2

/** The name that was probably meant: one that the word begins, or that differs in few letters. */
export function nearest (word: string, names: readonly string[]): string | undefined {
  const begun = names.filter(name => word.length > 0 && name.startsWith(word))
  if (begun.length === 1) return begun[0]
  const [closest] = names.map(name => ({ name, away: distance(word, name) })).toSorted((a, b) => a.away - b.away)
  return closest && closest.away <= MAX_DISTANCE ? closest.name : undefined
}

/** Number of letters to insert, remove or replace (Levenshtein). */
function distance (a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, at) => at)
  for (const [i, letter] of [...a].entries()) {
    const next = [i + 1]
    for (let j = 0; j < b.length; j++) next.push(Math.min(next[j]! + 1, row[j + 1]! + 1, row[j]! + (letter === b[j] ? 0 : 1)))
    row = next
  }
  return row[b.length]!
}
