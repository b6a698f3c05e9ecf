import type { Backplane } from '../cluster/backplane.ts'
import type { Link, Prepare } from './link.ts'
import { ServerClock } from './server-clock.ts'

/** The backplane of a link that is not open yet, and what prepares the link. */
export interface LinkedBackplane {
  backplane: Backplane & Required<Pick<Backplane, 'close'>>
  clock: ServerClock
  prepare: Prepare
}

/** `close` of the backplane closes the link. */
export function backplaneOver (link: Link): LinkedBackplane {
  return { backplane: { close: async () => link.close() } as any, clock: new ServerClock(), prepare: async () => {} }
}
