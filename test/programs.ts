import { accessSync, constants } from 'node:fs'
import { delimiter, join } from 'node:path'
import type { Test } from 'tap'

/** The Debian packages that are not named like their program. */
const packages: Record<string, string> = { ip: 'iproute2' }

/** Where a program is, if this machine has it; Debian keeps some where only root looks. */
export function programAt (name: string): string | undefined {
  const folders = [...(process.env.PATH ?? '').split(delimiter), '/usr/local/sbin', '/usr/sbin', '/sbin']
  return folders.map(folder => join(folder, name)).find(isProgram)
}

/** A test that needs a program which `npm ci` does not bring; where it is missing, the test says so and is skipped. */
export function withProgram (t: Test, name: string, title: string, body: (t: Test, path: string) => Promise<void>, options: object = {}): void {
  const path = programAt(name)
  if (path) void t.test(title, options, t => body(t, path))
  else void t.test(title, { skip: `needs ${name}, which this machine does not have (Debian: apt-get install ${packages[name] ?? name})` }, () => {})
}

function isProgram (path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}
