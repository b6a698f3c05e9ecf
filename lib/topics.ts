export interface TopicLimits {
  length: number
  levels: number
}

/** Levels joined by `/`, none of them a wildcard. What begins with `$` is ours. */
export function isTopic (text: unknown, limits: TopicLimits): text is string {
  return isShort(text, limits) && !text.split('/').some(isWild)
}

/** A topic, in which `+` stands for one level and `#`, at the end, for the rest. */
export function isFilter (text: unknown, limits: TopicLimits): text is string {
  if (!isShort(text, limits)) return false
  const levels = text.split('/')
  return levels.every((level, at) => !isWild(level) || level === '+' || (level === '#' && at === levels.length - 1))
}

function isShort (text: unknown, { length, levels }: TopicLimits): text is string {
  return typeof text === 'string' && text.length > 0 && text.length <= length && !text.startsWith('$') &&
    !/[\0\p{Cs}]/u.test(text) && text.split('/').length <= levels
}

function isWild (level: string): boolean {
  return level.includes('+') || level.includes('#')
}

/** Whether a filter matches a topic. */
export function matches (filter: string, topic: string): boolean {
  const [levels, names] = [filter.split('/'), topic.split('/')]
  if (isWild(levels[0]!) && topic.startsWith('$')) return false
  const rest = levels.at(-1) === '#'
  if (rest ? names.length < levels.length - 1 : names.length !== levels.length) return false
  return levels.every((level, at) => level === '+' || level === '#' || level === names[at])
}

class Level<T> {
  readonly next = new Map<string, Level<T>>()
  readonly here = new Set<T>()
}

/** Who listens to what: filters in a tree of levels, so that a publish costs its depth and not the number of filters. */
export class Topics<T> {
  readonly #root = new Level<T>()
  #size = 0

  /** Filters held, each listener's own counted. */
  get size (): number {
    return this.#size
  }

  /** True when nobody listened to this filter before. */
  add (filter: string, listener: T): boolean {
    let level = this.#root
    for (const name of filter.split('/')) {
      let next = level.next.get(name)
      if (!next) level.next.set(name, next = new Level())
      level = next
    }
    const before = level.here.size
    level.here.add(listener)
    this.#size += level.here.size - before
    return before === 0
  }

  /** True when nobody listens to this filter any more. */
  remove (filter: string, listener: T): boolean {
    const names = filter.split('/')
    const path = [this.#root]
    for (const name of names) {
      const next = path.at(-1)!.next.get(name)
      if (!next) return false
      path.push(next)
    }
    const last = path.at(-1)!
    if (!last.here.delete(listener)) return false
    this.#size--
    for (let depth = names.length; depth > 0; depth--) {
      const level = path[depth]!
      if (level.here.size > 0 || level.next.size > 0) break
      path[depth - 1]!.next.delete(names[depth - 1]!)
    }
    return last.here.size === 0
  }

  /** Each listener with a filter that matches, once. */
  match (topic: string): Set<T> {
    const found = new Set<T>()
    collect(this.#root, topic.split('/'), 0, found)
    return found
  }
}

function collect<T> (level: Level<T>, names: string[], at: number, found: Set<T>): void {
  // as in MQTT, no wildcard reaches what begins with `$`, and `a/#` matches `a` too
  const wild = at > 0 || !names[0]!.startsWith('$')
  for (const listener of (wild && level.next.get('#')?.here) || []) found.add(listener)
  if (at === names.length) {
    for (const listener of level.here) found.add(listener)
    return
  }
  const exact = level.next.get(names[at]!)
  if (exact) collect(exact, names, at + 1, found)
  const any = wild && level.next.get('+')
  if (any) collect(any, names, at + 1, found)
}
