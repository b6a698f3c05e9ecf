/**
 * Whether parsed JSON is safe to pass on: not nested deeper than `depth`, and without the keys that would change a prototype
 * when the application merges it into another object.
 */
export function isSafeJson (value: unknown, depth: number): boolean {
  if (typeof value !== 'object' || value === null) return true
  if (depth === 0) return false
  if (Array.isArray(value)) return value.every(item => isSafeJson(item, depth - 1))
  for (const key in value) {
    if (key === '__proto__') return false
    const member = (value as Record<string, unknown>)[key]
    if (typeof member !== 'object' || member === null) continue
    if (key === 'constructor' && Object.hasOwn(member, 'prototype')) return false
    if (!isSafeJson(member, depth - 1)) return false
  }
  return true
}
