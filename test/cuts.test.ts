import t from 'tap'
import { cutsInChromium, cutsInNode } from './campaigns/cuts.ts'
import { passes } from './passes.ts'
import { withProgram } from './programs.ts'

// The short form; the long one is a command: see "campaign:cuts" in package.json.

t.test('whatever cuts the connection of a client, nothing is lost, duplicated or leaked', async t => {
  await passes(t, cutsInNode({ cuts: 20, seed: Date.now() }))
})

withProgram(t, 'chromium', 'the same in a browser', async (t, path) => {
  await passes(t, cutsInChromium({ cuts: 10, seed: Date.now() }, path))
})
