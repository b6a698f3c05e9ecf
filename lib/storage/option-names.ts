/** Throws for an option that does not exist, so that a misspelled one is not ignored. */
export function checkOptionNames<Options extends object> (owner: string, options: Options, names: Record<keyof Options, true>): void {
  const unknown = Object.keys(options).find(name => !Object.hasOwn(names, name))
  if (unknown !== undefined) throw new Error(`${owner} has no option "${unknown}"`)
}
