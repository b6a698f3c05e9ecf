/**
 * Characters that a terminal or a reader interprets instead of showing them: control characters (escape sequences begin with one), format characters (they
 * reverse the direction of a line), line separators, private and unpaired code units.
 */
const uninterpretable = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/gu

/** A text of others, safe for a terminal, on one line. */
export function printable (text: string): string {
  return text.replace(uninterpretable, escaped)
}

/** A value as JSON, safe for a terminal; bytes become `{base64}`. It is the same value for a parser. */
export function json (value: unknown, indent = 0): string {
  const text = JSON.stringify(value, (_key, member) => member instanceof Uint8Array ? { base64: Buffer.from(member).toString('base64') } : member, indent) ?? 'null'
  return text.replace(uninterpretable, character => character === '\n' ? character : escaped(character)) // within strings JSON has no raw line feed
}

/** As in JSON, so that the value of a string does not change. */
function escaped (character: string): string {
  return character.split('').map(unit => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`).join('')
}
