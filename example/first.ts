import Fastify from 'fastify'
import devices from 'fastify-devices'

const app = Fastify()
await app.register(devices)

app.devices.handle('temperature', async (params, { device }) => {
  return { stored: true, from: device.id, params }
})
app.devices.on('connected', device => {
  device.send({ hello: device.id })
})

await app.listen({ port: 3000 })
