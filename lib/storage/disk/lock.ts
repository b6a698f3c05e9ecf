import { join } from 'node:path'
import { ClassicLevel } from 'classic-level'

/** Locks a folder against other processes with the lock of an empty database, which the system releases however the process ends. */
export async function lockFolder (path: string): Promise<{ release (): Promise<void> }> {
  const location = join(path, 'lock')
  const db = new ClassicLevel(location)
  try {
    await db.open()
  } catch (error) {
    const { code, message } = (error as { cause: Error & { code: string } }).cause
    if (code === 'LEVEL_LOCKED') throw new Error(`The folder "${path}" is in use by another process`, { cause: error })
    if (code !== 'LEVEL_CORRUPTION' && !/No such file/.test(message)) throw new Error(`The folder "${path}" cannot be opened: ${message}`, { cause: error })
    await ClassicLevel.destroy(location)
    await db.open()
  }
  return { release: () => db.close() }
}
