import t from 'tap'
import { webhooks } from './campaigns/webhooks.ts'
import { webhooksOfNodes } from './campaigns/webhooks-nodes.ts'
import { passes } from './passes.ts'
import { withProgram } from './programs.ts'

// The short forms. The long ones are commands: see "campaigns" in package.json.

t.test('an endpoint gets every message that was acknowledged to its device, whenever the gateway is killed', async t => {
  await passes(t, webhooks({ kills: 20, seed: Date.now() }))
})

withProgram(t, 'nats-server', 'when the node that sends events is killed or suspended, another one goes on and no event is lost', async t => {
  await passes(t, webhooksOfNodes({ kills: 3, pauses: 1 }))
})
