import type { Settings } from './options.ts'

/** Where the plugin is found, as paths of the application. */
export interface Paths {
  /** What precedes the paths of the REST routes; undefined with the option `rest: false`. */
  rest: string | undefined
  /** Where devices connect over WebSocket. */
  socket: string
}

/** `scope` is the prefix of the scope in which the plugin is registered. */
export function pathsOf (scope: string, { prefix, path, rest }: Pick<Settings, 'prefix' | 'path' | 'rest'>): Paths {
  const base = scope + prefix
  return { rest: rest ? base : undefined, socket: base + path }
}
