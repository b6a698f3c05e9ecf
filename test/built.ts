import { existsSync, readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))

/** The path of a file that `npm run build` makes. Throws where it is missing, or older than the sources: `npm test` builds first, a test alone does not. */
export function built (name: string): string {
  const path = join(root, 'dist', name)
  if (!existsSync(path)) throw new Error(`dist/${name} is missing: run "npm run build"`)
  const newer = sources().find(source => statSync(join(root, source)).mtimeMs > statSync(path).mtimeMs)
  if (newer) throw new Error(`${newer} is newer than dist/${name}: run "npm run build"`)
  return path
}

function sources (): string[] {
  const folders = ['lib', 'example', 'bench', 'test/campaigns']
  return folders.flatMap(folder => (readdirSync(join(root, folder), { recursive: true }) as string[]).filter(name => name.endsWith('.ts')).map(name => `${folder}/${name}`))
}
