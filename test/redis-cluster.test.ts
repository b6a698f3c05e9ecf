import t from 'tap'
import { clusterContract, refusesLargePayloads } from './contracts/cluster.ts'
import { redisEngine } from './engines.ts'
import { withProgram } from './programs.ts'

const MAX_PAYLOAD_BYTES = 8_388_608

withProgram(t, 'redis-server', 'many nodes over Redis', async t => {
  const server = await redisEngine.start(t)
  clusterContract(t, redisEngine, server)

  t.test('a payload above 8 MiB is refused by the first node, whatever its kind', async t => {
    const room = 4 * MAX_PAYLOAD_BYTES
    await refusesLargePayloads(t, server, MAX_PAYLOAD_BYTES, { maxMessage: room, maxBuffered: room, maxLetterBytes: room })
  })
})
