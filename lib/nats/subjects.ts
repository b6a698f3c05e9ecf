import { createHash } from 'node:crypto'

/** A subject has room for so many levels of a topic; those beyond are told apart by who listens. */
const MOST_LEVELS = 16
const LONGEST_LEVEL = 128
/** Ends a topic, so that `a/#` hears `a` too; no level reads like it. */
const END = '=='

/** One token of a subject, whatever the text: no dot, wildcard or space in it, never empty, and no two texts with the same one. */
export function token (text: string): string {
  const escaped = encodeURIComponent(text).replace(/[.!~*'()]/g, sign => `%${sign.charCodeAt(0).toString(16)}`)
  return escaped.replaceAll('%', '=') || '='
}

/** The text that a token stands for. */
export function textOf (token: string): string {
  return token === '=' ? '' : decodeURIComponent(token.replaceAll('=', '%'))
}

/** The subject of a topic, or the one that hears what a filter matches. */
export function subjectOf (topic: string): string {
  // what nodes tell each other is elsewhere: no wildcard reaches it
  const space = topic.startsWith('$') ? 'own' : 'topic'
  const levels = topic.split('/')
  const open = levels.at(-1) === '#'
  const named = (open ? levels.slice(0, -1) : levels).map(level => level === '+' ? '*' : short(token(level)))
  if (named.length > MOST_LEVELS) return [space, ...named.slice(0, MOST_LEVELS), '>'].join('.')
  return [space, ...named, open ? '>' : END].join('.')
}

/** Levels are compared and never read again, so a digest does for a long one. */
function short (token: string): string {
  return token.length <= LONGEST_LEVEL ? token : `=${createHash('sha256').update(token).digest('base64url')}`
}
