import type { Options } from '../../index.ts'
import { CommandFailure, messageOf } from '../command-failure.ts'

type Engines = Pick<Options, 'mailbox' | 'backplane'>

export interface EngineSettings {
  /** Folder of the letters. */
  data?: string | undefined
  /** Address of Redis. */
  redis?: string | undefined
  /** Addresses of NATS servers, separated by commas. */
  nats?: string | undefined
}

const loaders = {
  disk: () => import('../../storage/disk/index.ts'),
  redis: () => import('../../redis/index.ts'),
  nats: () => import('../../nats/index.ts')
}

/** Opens what keeps the letters and joins the nodes; without any, the letters are in memory. Their packages are optional peers. */
export async function openEngines ({ data, redis, nats }: EngineSettings, load = loaders): Promise<Engines> {
  if (redis !== undefined) {
    const engine = await installed(load.redis, '--redis', 'ioredis')
    return await engine.redis({ url: redis, startWithout: true })
  }
  if (nats !== undefined) {
    const engine = await installed(load.nats, '--nats', '@nats-io/transport-node @nats-io/jetstream')
    return await engine.nats({ servers: nats.split(','), startWithout: true })
  }
  if (data === undefined) return {}
  const engine = await installed(load.disk, '--data', 'classic-level')
  try {
    return { mailbox: await engine.diskMailbox({ path: data }) }
  } catch (error) {
    throw new CommandFailure('failed', messageOf(error)) // the folder is in use, its disk is full: a matter of the operator
  }
}

async function installed<Module> (load: () => Promise<Module>, flag: string, packages: string): Promise<Module> {
  try {
    return await load()
  } catch (error) {
    if ((error as NodeJS.ErrnoException | undefined)?.code !== 'ERR_MODULE_NOT_FOUND') throw error
    throw new CommandFailure('usage', `${flag} needs packages that are not installed: npm install ${packages}`)
  }
}
