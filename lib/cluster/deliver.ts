import type { Topics } from '../protocol/topics.ts'
import type { Listener, Publication, PublishResult } from './backplane.ts'

/** Gives a publication to the listeners of its topic; `nodes` is the number of those that have devices for it. */
export function deliver (listeners: Topics<Listener>, publication: Publication): PublishResult {
  const counts = Array.from(listeners.match(publication.topic), listener => listener(publication)).filter(count => count !== undefined)
  return { sent: counts.reduce((sum, count) => sum + count, 0), nodes: counts.length }
}
