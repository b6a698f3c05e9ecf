import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t from 'tap'
import ts from 'typescript'
import { withProgram } from './programs.ts'
import { root } from './root.ts'
import { header, programs, shellsNotRun } from './snippets.ts'
import { connect, listen } from './support.ts'

// Every snippet of the documentation is type-checked and run, or the tables of test/snippets.ts say why not.

const pages = ['README.md', 'CONTRIBUTING.md', 'SECURITY.md', ...readdirSync(join(root, 'docs')).filter(name => name.endsWith('.md')).map(name => `docs/${name}`)]

interface Snippet {
  page: string
  /** Page, heading, and its place among the snippets of its kind under that heading. */
  name: string
  kind: 'program' | 'shell' | 'other'
  code: string
  /** What the page shows as its output. */
  shown: string | undefined
}

const kinds: Record<string, Snippet['kind']> = { ts: 'program', js: 'program', sh: 'shell' }

function snippetsOf (page: string): Snippet[] {
  const text = readFileSync(join(root, page), 'utf8')
  const counts = new Map<string, number>()
  let heading = ''
  return [...text.matchAll(/^#+ (?<heading>.*)$|^```(?<language>\w*)\n(?<code>[\s\S]*?)^```$(?:\n\n```\n(?<shown>[\s\S]*?)^```$)?/gm)].flatMap(({ groups }) => {
    const { code, language, shown } = groups!
    if (code === undefined) {
      heading = groups!.heading!
      return []
    }
    const kind = kinds[language!] ?? 'other'
    const place = (counts.get(`${heading} ${kind}`) ?? 0) + 1
    counts.set(`${heading} ${kind}`, place)
    return [{ page, name: `${page} > ${heading} ${place}`, kind, code, shown }]
  })
}

const snippets = pages.flatMap(snippetsOf)
const ofKind = (kind: Snippet['kind']) => snippets.filter(snippet => snippet.kind === kind)
const isRun = ({ name }: Snippet) => shellsNotRun[name] === undefined

/** A snippet with what makes it a program. */
function complete ({ name, code }: Snippet): string {
  const { before = '', after = '', replace = [] } = programs[name]!
  const replaced = replace.reduce((text, [from, to]) => {
    const next = text.replace(from, () => to)
    if (next === text) throw new Error(`${name} does not contain ${from}`)
    return next
  }, code)
  return `${header}\n${before}\n${replaced}\n${after}\n`
}

t.test('every snippet of a program has an entry, and every entry a snippet', async t => {
  t.strictSame(Object.keys(programs).toSorted(), ofKind('program').map(({ name }) => name).toSorted())
})

t.test('every shell snippet is run or has an entry that says why not, and every such entry a snippet', async t => {
  for (const snippet of ofKind('shell')) if (isRun(snippet)) t.match(snippet.code, /\bcurl .*localhost:3000/, snippet.name)
  t.strictSame(Object.keys(shellsNotRun).filter(name => !ofKind('shell').some(snippet => snippet.name === name)), [])
})

t.test('every TypeScript snippet fits the types of lib', async t => {
  const { options } = ts.parseJsonConfigFileContent(ts.readConfigFile(join(root, 'tsconfig.json'), ts.sys.readFile).config, ts.sys, root)
  const checked = ofKind('program').filter(({ name }) => programs[name]?.notChecked === undefined)
  const sources = new Map(checked.map((snippet, at) => [join(root, `test/snippet-${at}.ts`), snippet]))
  const host = ts.createCompilerHost(options)
  const { getSourceFile, fileExists, readFile } = host
  const textOf = (path: string) => sources.has(path) ? complete(sources.get(path)!) : undefined
  host.fileExists = path => sources.has(path) || fileExists(path)
  host.readFile = path => textOf(path) ?? readFile(path)
  host.getSourceFile = (path, language, ...rest) => {
    const text = textOf(path)
    return text === undefined ? getSourceFile(path, language, ...rest) : ts.createSourceFile(path, text, language)
  }
  const program = ts.createProgram([...sources.keys()], { ...options, noUnusedLocals: false, noUnusedParameters: false }, host)
  for (const [path, { name }] of sources) {
    const problems = ts.getPreEmitDiagnostics(program, program.getSourceFile(path))
    t.strictSame(problems.map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, '\n')), [], name)
  }
})

/** Runs each program that is named on its command line, in turn and in a folder of its own, and reports what each printed and why it failed. */
const driver = `
  import { mkdtempSync, rmSync } from 'node:fs'
  import { tmpdir } from 'node:os'
  import { join } from 'node:path'
  import { format } from 'node:util'
  const { fetch, WebSocket } = globalThis
  for (const file of process.argv.slice(2)) {
    const printed = []
    console.log = (...values) => printed.push(format(...values))
    Object.assign(globalThis, { fetch, WebSocket })
    const folder = mkdtempSync(join(tmpdir(), 'snippet-'))
    process.chdir(folder)
    const late = new Promise((_, reject) => setTimeout(reject, 20_000, new Error('The program did not end within 20 s')).unref())
    const failure = await Promise.race([import(file), late]).then(() => undefined, error => error.stack)
    process.send({ printed, failure })
    rmSync(folder, { recursive: true, force: true })
  }
  process.disconnect()
  process.exit()
`

t.test('the programs of the snippets run', async t => {
  // within the package, so that they import it by its name, as it was built
  const folder = mkdtempSync(join(root, 'dist/snippets-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const run = ofKind('program').filter(({ name }) => programs[name] && programs[name].notRun === undefined)
  writeFileSync(join(folder, 'driver.js'), driver)
  const files = run.map((snippet, at) => {
    const { outputText } = ts.transpileModule(complete(snippet), { compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2023 } })
    const file = join(folder, `${at}.js`)
    writeFileSync(file, outputText)
    return file
  })
  const { NODE_OPTIONS: _, ...env } = process.env
  const child = spawn(process.execPath, [join(folder, 'driver.js'), ...files], { env, stdio: ['ignore', 'ignore', 'inherit', 'ipc'] })
  t.teardown(() => child.kill())
  const reports: Array<{ printed: string[], failure?: string }> = []
  child.on('message', report => reports.push(report as typeof reports[number]))
  t.strictSame(await once(child, 'exit'), [0, null])
  for (const [at, { name }] of run.entries()) {
    t.equal(reports[at]?.failure, undefined, name)
    if (programs[name]!.prints) t.strictSame(reports[at]?.printed, programs[name]!.prints, name)
  }
})

// those with answers shown next to each other: each page is run from its first snippet to its last
for (const page of pages) {
  const commands = ofKind('shell').filter(snippet => snippet.page === page && isRun(snippet))
  if (commands.length > 0) withProgram(t, 'curl', `the requests of ${page} get the answers that it shows`, async t => {
    const app = await listen(t, { node: 'n1' })
    const device = await connect(app.url, 'abc123')
    device.handle('message', () => ({})).handle('reboot', ({ delay }) => ({ in: delay }))
    const home = t.testdir({ '.curlrc': 'silent\nwrite-out = "\\n%{http_code}\\n"\n' })
    for (const { name, code, shown } of commands) {
      const { stdout } = await promisify(execFile)('sh', ['-c', code.replaceAll('localhost:3000', new URL(app.url).host)], { env: { ...process.env, CURL_HOME: home } })
      if (shown) t.strictSame(steady(stdout), steady(shown.replace(/^(\d+) ?([\s\S]*)$/, '$2\n$1')), name)
      else for (const status of stdout.match(/^\d{3}$/gm) ?? ['none']) t.match(status, /^20\d$/, name)
    }
  })
}

/** The lines of an answer, each with what differs from run to run replaced by its type. */
function steady (text: string): unknown[] {
  const lines = text.split('\n').filter(line => line !== '')
  return lines.map(line => JSON.parse(line, (key, value) => ['id', 'at', 'expiresAt', 'generation', 'since'].includes(key) ? typeof value : value))
}
