import t from 'tap'
import { redis } from '../lib/redis/index.ts'
import { redisServer } from './campaigns/redis.ts'
import { backplaneContract } from './contracts/backplane.ts'
import { withProgram } from './programs.ts'

withProgram(t, 'redis-server', 'the contract of a backplane', async (t, path) => {
  const server = await redisServer(t, path)
  let clusters = 0
  backplaneContract(t, 'redis()', async () => {
    const prefix = `c${++clusters}`
    const [a, b] = await Promise.all([0, 1].map(async () => (await redis({ url: server.url, prefix })).backplane)) as [any, any]
    return { a, b, close: async () => { await Promise.all([a.close(), b.close()]) } }
  })
})
