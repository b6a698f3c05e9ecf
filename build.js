import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, readdirSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { pathToFileURL } from 'node:url'

const folders = ['lib', 'example', 'bench', 'test']
/** Its time is that of the last build without errors. */
const MARKER = 'dist/built'
/** The files of the console's page, which run in browsers as they are. */
const PAGE = 'lib/console/page'

/** A source that is newer than the last build, undefined if there is none. By the time of change: a file may be replaced by an older one. */
export function newerSource () {
  const built = statSync(MARKER, { throwIfNoEntry: false })?.mtimeMs ?? 0
  return ['tsconfig.json', ...filesIn('.', '.ts').map(name => `${name}.ts`), ...readdirSync(PAGE).map(name => `${PAGE}/${name}`)].find(path => statSync(path).ctimeMs > built)
}

/** The paths of the files of `folders` with an extension, without it. */
function filesIn (base, extension) {
  return folders.filter(folder => existsSync(`${base}/${folder}`)).flatMap(folder =>
    readdirSync(`${base}/${folder}`, { recursive: true }).filter(name => name.endsWith(extension)).map(name => `${folder}/${name.slice(0, -extension.length)}`))
}

/** Compiles to `dist` what has changed since the last build; everything if a source was added or removed, so that nothing of a removed one stays. */
function build () {
  const started = new Date()
  const compiled = filesIn('dist', '.js').filter(name => !name.startsWith(PAGE))
  const same = compiled.toSorted().join() === filesIn('.', '.ts').toSorted().join()
  if (!same) rmSync('dist', { recursive: true, force: true })
  process.exitCode = spawnSync('tsc', ['-p', '.', '--incremental'], { stdio: 'inherit' }).status ?? 1
  if (process.exitCode !== 0) return
  rmSync(`dist/${PAGE}`, { recursive: true, force: true })
  cpSync(PAGE, `dist/${PAGE}`, { recursive: true })
  writeFileSync(MARKER, '')
  utimesSync(MARKER, started, started)
}

// As a program, which `npm run build` is
if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) build()
