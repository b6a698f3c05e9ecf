/**
 * Monotonic time in whole milliseconds. V8 stores a small integer in the field itself, but a fraction as an object of its own, and every
 * connection has several such fields.
 */
export function clock (): number {
  return Math.floor(performance.now())
}
