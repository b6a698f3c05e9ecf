import { createHash } from 'node:crypto'

/** Topics that differ only below this level share a subject; listeners tell them apart by the topic in the message. */
const MAX_LEVELS = 16
const MAX_LEVEL_LENGTH = 128
/** The last token of a topic, so that the subject of `a/#` matches `a` too. No level encodes to it. */
const END = '=='

/** Encodes any text as one token of a subject: never empty, without dots, wildcards or spaces, and different for different texts. */
export function token (text: string): string {
  const escaped = encodeURIComponent(text).replace(/[.!~*'()]/g, sign => `%${sign.charCodeAt(0).toString(16)}`)
  return escaped.replaceAll('%', '=') || '='
}

/** Decodes a token. */
export function textOf (token: string): string {
  return token === '=' ? '' : decodeURIComponent(token.replaceAll('=', '%'))
}

/** The subject of the record of a device in the bucket. */
export const recordSubject = (deviceId: string): string => token(deviceId)
/** The subject on which the owner of a device receives requests. */
export const deviceSubject = (deviceId: string): string => `device.${token(deviceId)}`

/** The subject of a topic, or the one that matches a filter. */
export function subjectOf (topic: string): string {
  // internal topics have a prefix of their own, so that no filter of an application matches them
  const space = topic.startsWith('$') ? 'own' : 'topic'
  const levels = topic.split('/')
  const isOpen = levels.at(-1) === '#'
  const tokens = (isOpen ? levels.slice(0, -1) : levels).map(level => level === '+' ? '*' : shorten(token(level)))
  if (tokens.length > MAX_LEVELS) return [space, ...tokens.slice(0, MAX_LEVELS), '>'].join('.')
  return [space, ...tokens, isOpen ? '>' : END].join('.')
}

/** A digest replaces a long level, because levels are compared and never decoded. */
function shorten (token: string): string {
  return token.length <= MAX_LEVEL_LENGTH ? token : `=${createHash('sha256').update(token).digest('base64url')}`
}
