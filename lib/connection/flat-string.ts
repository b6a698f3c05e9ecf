/**
 * Copies a string. V8 represents a substring as a view of the whole, so an id cut from a URL of 10 kB would retain 10 kB for as long as
 * the id is kept.
 */
export function flatString (text: string): string {
  return Buffer.from(text).toString()
}
