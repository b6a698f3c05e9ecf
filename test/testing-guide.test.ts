import { execFile } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import ts from 'typescript'
import { injectSettings } from '../lib/testing/options.ts'
import { root } from './root.ts'

const page = readFileSync(join(root, 'docs/testing.md'), 'utf8')
const [application, tests] = [...page.matchAll(/```ts\n([\s\S]*?)```/g)].map(([, code]) => code!) as [string, string]

/** Runs the tests of the page against an application; resolves with the titles of those that pass and of those that fail. */
async function run (folder: string, application: string): Promise<Record<'ok' | 'not ok', string[]>> {
  for (const [name, code] of Object.entries({ 'app.js': application, 'app.test.js': tests })) {
    const { outputText } = ts.transpileModule(code, { compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2023 } })
    writeFileSync(join(folder, name), outputText)
  }
  const { NODE_OPTIONS: _, NODE_TEST_CONTEXT: __, ...env } = process.env
  const report = await new Promise<string>(resolve => {
    execFile(process.execPath, ['--test', '--test-reporter=tap', 'app.test.js'], { cwd: folder, env }, (_error, stdout) => resolve(stdout))
  })
  const titles = (result: string) => [...report.matchAll(new RegExp(`^ *${result} \\d+ - (a.*)$`, 'gm'))].map(([, title]) => title!).filter(title => !title.endsWith('.js'))
  return { ok: titles('ok'), 'not ok': titles('not ok') }
}

t.test('the first test of the guide passes, and fails if the application is broken', async t => {
  const folder = mkdtempSync(join(root, 'dist/guide-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const [sales, locked, refused] = ['a kiosk gets the price, and its sales are numbered', 'all kiosks are locked', 'a kiosk with a wrong token is refused'] as const
  t.strictSame(await run(folder, application), { ok: [sales, locked, refused], 'not ok': [] })
  t.strictSame(await run(folder, application.replace('price: 250', 'price: 300')), { ok: [locked, refused], 'not ok': [sales] })
  t.strictSame(await run(folder, application.replace('process.env.KIOSK_TOKEN', 'token')), { ok: [sales, locked], 'not ok': [refused] })
})

t.test('the guide lists every option', async t => {
  const [, rows] = page.match(/^## Options\n\n\|.*\n\|.*\n((?:\|.*\n)*)/m)!
  t.strictSame([...rows!.matchAll(/^\| `(\w+)`/gm)].map(([, name]) => name).filter(name => name !== 'contract'), Object.keys(injectSettings({ deviceId: 'd' })), 'a contract is of types only')
})
