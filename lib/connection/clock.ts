/**
 * Whole milliseconds of a clock that nobody sets. A fraction of one would be an object of its own in each field that holds it, of which
 * there are some for every connection.
 */
export function clock (): number {
  return Math.floor(performance.now())
}
