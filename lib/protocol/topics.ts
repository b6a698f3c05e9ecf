export interface TopicLimits {
  length: number
  levels: number
}

/** `+` is allowed in this many levels, because each doubles the nodes that a match can visit. */
const MAX_WILDCARD_LEVELS = 8

/** Levels joined by `/`, without wildcards. Topics that begin with `$` are reserved. */
export function isTopic (text: unknown, limits: TopicLimits): text is string {
  return levelsOf(text, limits)?.some(hasWildcard) === false
}

/** A topic in which `+` may stand for one of the first levels, and `#`, at the end, for the rest. */
export function isFilter (text: unknown, limits: TopicLimits): text is string {
  const levels = levelsOf(text, limits)
  return levels !== undefined && levels.every((level, at) => {
    return !hasWildcard(level) || (level === '+' && at < MAX_WILDCARD_LEVELS) || (level === '#' && at === levels.length - 1)
  })
}

/** Undefined: the text is neither a topic nor a filter. */
function levelsOf (text: unknown, limits: TopicLimits): string[] | undefined {
  if (typeof text !== 'string' || text.length === 0 || text.length > limits.length) return undefined
  if (text.startsWith('$') || /[\0\p{Cs}]/u.test(text)) return undefined
  const levels = text.split('/')
  return levels.length <= limits.levels ? levels : undefined
}

function hasWildcard (level: string): boolean {
  return level.includes('+') || level.includes('#')
}

/** Whether a filter matches a topic. */
export function matches (filter: string, topic: string): boolean {
  const [levels, names] = [filter.split('/'), topic.split('/')]
  if (hasWildcard(levels[0]!) && topic.startsWith('$')) return false
  const rest = levels.at(-1) === '#'
  if (rest ? names.length < levels.length - 1 : names.length !== levels.length) return false
  return levels.every((level, at) => level === '+' || level === '#' || level === names[at])
}

const SLASH = 0x2f

/**
 * The levels `text.slice(start, end)` of a filter. A node is split only where filters branch, so a filter adds at most two nodes, whatever its number of
 * levels.
 */
class Node<T> {
  readonly text: string
  start: number
  readonly end: number
  listeners: Set<T> | undefined
  /** Child nodes, by their first level. */
  next: Map<string, Node<T>> | undefined

  constructor (text: string, start: number, end: number) {
    this.text = text
    this.start = start
    this.end = end
  }

  get key (): string {
    return levelAt(this.text, this.start)
  }
}

/** The listeners of topic filters, in a tree of levels. The cost of a match is bounded by the levels of the topic, not by the number of filters. */
export class Topics<T> {
  readonly #root = new Node<T>('', 0, -1)
  #size = 0

  /** Number of pairs of a filter and a listener. */
  get size (): number {
    return this.#size
  }

  /** True: the first listener of this filter. */
  add (filter: string, listener: T): boolean {
    let node = this.#root
    while (node.end < filter.length) node = childFor(node, filter)
    node.listeners ??= new Set()
    const before = node.listeners.size
    node.listeners.add(listener)
    this.#size += node.listeners.size - before
    return before === 0
  }

  /** True: the last listener of this filter. */
  remove (filter: string, listener: T): boolean {
    const path = [this.#root]
    for (let node = this.#root; node.end < filter.length; path.push(node)) {
      const child = node.next?.get(levelAt(filter, node.end + 1))
      if (!child || commonEnd(child, filter) < child.end) return false
      node = child
    }
    const node = path.at(-1)!
    if (!node.listeners?.delete(listener)) return false
    this.#size--
    if (node.listeners.size > 0) return false
    node.listeners = undefined
    prune(path)
    return true
  }

  /** The listeners with a filter that matches, each once. */
  match (topic: string): Set<T> {
    const found = new Set<T>()
    collect(this.#root, topic.split('/'), 0, found)
    return found
  }
}

/** The next node on the path to a filter; created if there is none. */
function childFor<T> (node: Node<T>, filter: string): Node<T> {
  const start = node.end + 1
  const key = levelAt(filter, start)
  node.next ??= new Map()
  let child = node.next.get(key)
  if (!child) child = new Node(filter, start, filter.length)
  else {
    const end = commonEnd(child, filter)
    if (end === child.end) return child
    child = split(child, end)
  }
  node.next.set(key, child)
  return child
}

/** Splits a node in two and returns the upper one. */
function split<T> (node: Node<T>, end: number): Node<T> {
  const upper = new Node<T>(node.text, node.start, end)
  node.start = end + 1
  upper.next = new Map([[node.key, node]])
  return upper
}

/** Removes the last node of a path if no filter ends or branches there, and joins a node with its only child. */
function prune<T> (path: Array<Node<T>>): void {
  const last = path.at(-1)!
  if (!last.next) {
    path.pop()
    const above = path.at(-1)!
    above.next!.delete(last.key)
    if (above.next!.size === 0) above.next = undefined
  }
  const [above, node] = [path.at(-2), path.at(-1)!]
  if (!above || node.listeners || node.next?.size !== 1) return
  const [only] = node.next.values()
  only!.start = node.start
  above.next!.set(node.key, only!)
}

/** The end of the levels that a node and a filter have in common. Their first level is equal. */
function commonEnd<T> ({ text, start, end }: Node<T>, filter: string): number {
  let common = start
  for (let at = start; charCodeAt(text, at, end) === charCodeAt(filter, at, filter.length); at++) {
    if (at === end || at === filter.length) return at
    if (text.charCodeAt(at) === SLASH) common = at
  }
  return common
}

/** The end of the text ends a level, as `/` does. */
function charCodeAt (text: string, at: number, end: number): number {
  return at === end ? SLASH : text.charCodeAt(at)
}

function levelAt (text: string, start: number): string {
  const end = text.indexOf('/', start)
  return end === -1 ? text.slice(start) : text.slice(start, end)
}

function collect<T> (node: Node<T>, names: string[], at: number, found: Set<T>): void {
  if (at === names.length && node.listeners) for (const listener of node.listeners) found.add(listener)
  if (!node.next) return
  if (at < names.length) descend(node.next.get(names[at]!), names, at, found)
  // as in MQTT, wildcards do not match topics that begin with `$`, and `a/#` matches `a` too
  if (at === 0 && names[0]!.startsWith('$')) return
  if (at < names.length) descend(node.next.get('+'), names, at, found)
  descend(node.next.get('#'), names, at, found)
}

function descend<T> (node: Node<T> | undefined, names: string[], at: number, found: Set<T>): void {
  const after = node && levelsMatched(node, names, at)
  if (after !== undefined) collect(node!, names, after, found)
}

/** The number of levels of a topic that have matched at the end of a node; undefined: one of them does not match. */
function levelsMatched<T> ({ text, start, end }: Node<T>, names: string[], at: number): number | undefined {
  for (let from = start; from <= end; from++, at++) {
    if (text[from] === '#' && from + 1 === text.length) return names.length
    const name = names[at]
    if (name === undefined) return undefined
    const isAny = text[from] === '+'
    if (!isAny && !text.startsWith(name, from)) return undefined
    from += isAny ? 1 : name.length
    if (from !== end && text.charCodeAt(from) !== SLASH) return undefined
  }
  return at
}
