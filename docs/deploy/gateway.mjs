// The config of `fastify-devices serve`: options of the plugin, and your handlers.
export const options = {}

export default async app => {
  app.devices.handle('echo', params => params)
}
