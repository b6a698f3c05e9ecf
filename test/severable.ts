import type { Answer, Backplane, Owner } from '../lib/cluster/backplane.ts'

export interface Severable {
  backplane: Backplane
  /** The node is gone without closing, as when its process is killed. */
  cut (): Promise<void>
  /** The node is suspended: it keeps what it owns, and neither receives nor sends. */
  freeze (): void
}

/** One node's view of a backplane, from which the node can be cut off. */
export function severable (shared: Backplane): Severable {
  const never = new Promise<never>(() => {})
  const undo: Array<() => unknown> = []
  let severed = false
  const still = <Args extends unknown[], T>(act: (...args: Args) => Promise<T>) => async (...args: Args) => severed ? await never : await act(...args)
  const deaf = (owner: Owner): Owner => ({
    get presence () { return owner.presence },
    listensTo: topic => owner.listensTo(topic),
    yield: () => owner.yield(),
    answer: still(async (request, signal): Promise<Answer> => {
      const answer = await owner.answer(request, signal)
      return severed ? await never : answer
    })
  })
  const freeze = () => { severed = true }
  return {
    freeze,
    async cut () {
      freeze()
      await Promise.all(undo.map(act => act()))
    },
    backplane: {
      remote: shared.remote,
      own: still(async (name, owner) => {
        const ownership = await shared.own(name, deaf(owner))
        undo.push(() => ownership.release())
        return ownership
      }),
      ask: still((...asked) => shared.ask(...asked)),
      watch (filter, listener) {
        const unwatch = shared.watch(filter, publication => severed ? 0 : listener(publication))
        undo.push(unwatch)
        return unwatch
      },
      publish: still(publication => shared.publish(publication)),
      list: still(page => shared.list(page)),
      follow: listener => shared.follow(listener)
    }
  }
}
