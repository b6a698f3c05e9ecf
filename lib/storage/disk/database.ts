import { ClassicLevel } from 'classic-level'

export type Database = ClassicLevel<string, Uint8Array>

const WRITE_BUFFER_BYTES = 16_777_216
/** Before and behind all keys. */
export const BEGIN = '!'
export const END = '\uffff'

/** A database in a folder, not open yet. It is not compressed: a damaged bit would cost all records of a compressed block. */
export function databaseIn (path: string, createIfMissing: boolean): Database {
  return new ClassicLevel(path, { keyEncoding: 'utf8', valueEncoding: 'view', createIfMissing, compression: false, writeBufferSize: WRITE_BUFFER_BYTES })
}

/** Whether an error says that the disk, or the share of this user, has no room left. */
export function isDiskFull (error: unknown): boolean {
  const { message, cause } = error as Error
  return /No space left|ENOSPC|EDQUOT|quota exceeded/i.test(`${message} ${(cause as Error | undefined)?.message}`)
}

/** Whether an error of LevelDB says that its files are damaged. A read behind the end of a file that was cut short is an invalid argument. */
export function isDamage (error: unknown): boolean {
  const { code, message } = error as Error & { code?: string }
  return code === 'LEVEL_CORRUPTION' || /Invalid argument/.test(message)
}
