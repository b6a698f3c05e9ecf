/** Throws for an option that does not exist, so that a misspelled one is not ignored. The values are not checked. */
export function checkOptionNames<Options extends object> (owner: string, options: Options, names: Record<keyof Options, unknown>): void {
  for (const name in options) if (!Object.hasOwn(names, name)) throw new TypeError(`${owner} has no option "${name}"`)
}
