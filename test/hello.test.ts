import t from 'tap'
import Fastify from 'fastify'
import devices from '../lib/index.ts'
t.test('x', async t => {
  const app = Fastify(); await app.register(devices); await app.ready()
  t.equal(app.devices.size, 0)
  await app.close()
})
