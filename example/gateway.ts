import type { FastifyPluginAsync } from 'fastify'

// The config of `npm start`: fastify-devices serve --config dist/example/gateway.js

/** Answers a first try: calls of `echo`, and messages, are sent back. */
const gateway: FastifyPluginAsync = async app => {
  app.devices.handle('echo', params => params)
  app.devices.on('message', (data, device) => device.send(data))
}

export default gateway
