// The config of `fastify-devices serve`. Add your handlers here.
import metrics from 'fastify-devices/metrics'

export default async app => {
  await app.register(metrics, { path: '/metrics' })
  app.devices.handle('echo', params => params)
}
