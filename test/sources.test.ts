import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { pathToFileURL } from 'node:url'
import t from 'tap'
import { root } from './root.ts'

const { levels }: { levels: Record<'unit' | 'integration' | 'campaigns', string[]> } = await import(pathToFileURL(join(root, 'test/levels.js')).href)

const files = ['bench', 'example', 'test'].flatMap(folder =>
  (readdirSync(join(root, folder), { recursive: true }) as string[]).filter(name => name.endsWith('.ts')).map(name => join(folder, name))
)

/** The files, except those of `lib`, that a file imports. */
const imports = new Map(files.map(file => {
  const targets = [...readFileSync(join(root, file), 'utf8').matchAll(/^(?:import|export)\b[^'"]*?\bfrom '(?<target>\.[^']+)'/gm)]
  return [file, targets.map(({ groups }) => relative(root, join(root, dirname(file), groups!.target!))).filter(target => files.includes(target))]
}))

/** A file and all that it imports. */
function reached (file: string, found = new Set<string>()): Set<string> {
  if (found.has(file)) return found
  found.add(file)
  for (const target of imports.get(file)!) reached(target, found)
  return found
}

t.test('every test file has one level', async t => {
  const tests = files.filter(file => /^test\/[^/]+\.test\.ts$/.test(file))
  t.strictSame(Object.values(levels).flat().map(name => `test/${name}.test.ts`).toSorted(), tests.toSorted())
})

t.test('unit tests start no server and no program', async t => {
  for (const name of levels.unit) {
    const all = [...reached(`test/${name}.test.ts`)]
    t.strictSame(all.filter(file => /^test\/(support|programs|browser)\.ts$|^test\/campaigns\//.test(file)), [], name)
    t.strictSame(all.filter(file => /from 'node:(child_process|net|http|tls)'/.test(readFileSync(join(root, file), 'utf8'))), [], name)
  }
})

t.test('imports of the benchmarks, examples and tests run one way, those of types too', async t => {
  const circles = files.filter(file => imports.get(file)!.some(target => reached(target).has(file)))
  t.strictSame(circles, [])
})
