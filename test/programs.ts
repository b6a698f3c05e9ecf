import { accessSync, constants } from 'node:fs'
import { delimiter, join } from 'node:path'
import type { Test } from 'tap'

/** The Debian packages that are not named like their program. */
const packages: Record<string, string> = { ip: 'iproute2', promtool: 'prometheus', script: 'bsdutils', 'systemd-analyze': 'systemd' }

/** The path of a program, if it is installed. Debian keeps some in `sbin`, which is not in every PATH. */
export function programAt (name: string): string | undefined {
  const folders = [...(process.env.PATH ?? '').split(delimiter), '/usr/local/sbin', '/usr/sbin', '/sbin']
  return folders.map(folder => join(folder, name)).find(isProgram)
}

/** A test that needs a program which `npm ci` does not install; it is skipped where the program is missing. */
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
