import { isListed, type Backplane, type PresenceChange, type Listener, type ListPage, type Owner, type Ownership, type Presence } from './backplane.ts'
import { deliver } from './deliver.ts'
import { pageOf } from './presence-page.ts'
import { SortedIndex } from './sorted-index.ts'
import { Topics } from '../protocol/topics.ts'

interface LocalOwner extends Ownership {
  readonly owner: Owner
}

/** Joins the nodes of one process, of which there is usually one. */
export function localBackplane (): Backplane {
  const owners = new Map<string, LocalOwner>()
  /** The device ids in list order. */
  const listed = new SortedIndex()
  const listeners = new Topics<Listener>()
  const followers = new Set<(change: PresenceChange) => void>()
  let generation = 0

  const presenceOf = ({ owner, generation }: LocalOwner): Presence => ({ ...owner.presence, generation })
  const notify = (kind: PresenceChange['kind'], name: string, owned: LocalOwner) => {
    if (isListed(name)) for (const follower of followers) follower({ kind, presence: presenceOf(owned) })
  }
  function * devicesBehind ({ after = '', prefix }: ListPage): IterableIterator<{ presence: Presence, owner: Owner }> {
    for (const deviceId of listed.after(after, prefix)) {
      const owned = owners.get(deviceId)!
      yield { presence: presenceOf(owned), owner: owned.owner }
    }
  }

  return {
    remote: false,

    async own (deviceId, owner) {
      if (owners.has(deviceId)) await owner.confirmAlive?.()
      // starts from the clock, so that generations grow across restarts unless the clock is set back
      generation = Math.max(generation + 1, Date.now())
      const owned: LocalOwner = {
        owner,
        generation,
        async release () {
          if (owners.get(deviceId) !== owned) return
          owners.delete(deviceId)
          listed.delete(deviceId)
          notify('disconnected', deviceId, owned)
        }
      }
      const older = owners.get(deviceId)
      owners.set(deviceId, owned)
      if (isListed(deviceId)) listed.add(deviceId)
      if (older) notify('disconnected', deviceId, older)
      notify('connected', deviceId, owned)
      older?.owner.yield()
      return owned
    },

    async ask (deviceId, request, signal) {
      return owners.get(deviceId)?.owner.answer(request, signal)
    },

    watch (filter, listener) {
      listeners.add(filter, listener)
      return () => { listeners.remove(filter, listener) }
    },

    async publish (publication) {
      return deliver(listeners, publication)
    },

    async list (page) {
      return pageOf(devicesBehind(page), page)
    },

    follow (listener) {
      followers.add(listener)
      return () => { followers.delete(listener) }
    }
  }
}
