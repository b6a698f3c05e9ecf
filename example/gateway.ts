import type { FastifyPluginAsync } from 'fastify'
import devicesConsole from 'fastify-devices/console'

// The config of `npm start`: fastify-devices serve --config dist/example/gateway.js

/** Adds the console, and answers a first try: calls of `echo`, and messages, are sent back. */
const gateway: FastifyPluginAsync = async app => {
  await app.register(devicesConsole, { prefix: '/' })
  app.devices.handle('echo', params => params)
  app.devices.on('message', (data, device) => device.send(data))
}

export default gateway
