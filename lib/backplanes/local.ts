import type { Backplane, Listener, Owner, Presence } from '../backplane.ts'
import { Topics } from '../topics.ts'

interface Owned {
  owner: Owner
  generation: number
}

/** Joins the nodes of one process: usually one. */
export function localBackplane (): Backplane {
  const owners = new Map<string, Owned>()
  const listeners = new Topics<Listener>()
  let generation = 0

  return {
    remote: false,

    async own (deviceId, owner) {
      // grows over restarts too, as long as the clock does not go back
      const owned: Owned = { owner, generation: generation = Math.max(generation + 1, Date.now()) }
      const older = owners.get(deviceId)
      owners.set(deviceId, owned)
      older?.owner.yield()
      return {
        generation: owned.generation,
        async release () {
          if (owners.get(deviceId) === owned) owners.delete(deviceId)
        }
      }
    },

    async ask (deviceId, request, signal) {
      return owners.get(deviceId)?.owner.answer(request, signal)
    },

    watch (filter, listener) {
      listeners.add(filter, listener)
      return () => { listeners.remove(filter, listener) }
    },

    async publish (publication) {
      const heard = listeners.match(publication.topic)
      let sent = 0
      for (const listener of heard) sent += listener(publication)
      return { sent, nodes: heard.size }
    },

    async list ({ limit, after = '', topic }) {
      const page: Presence[] = []
      for (const deviceId of [...owners.keys()].filter(isListed).toSorted()) {
        if (page.length === limit) break
        const { owner, generation } = owners.get(deviceId)!
        if (deviceId > after && (topic === undefined || owner.listensTo(topic))) page.push({ ...owner.presence, generation })
      }
      return page
    }
  }
}

/** A name that begins with `$` is no device. */
function isListed (name: string): boolean {
  return !name.startsWith('$')
}
