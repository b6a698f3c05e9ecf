/** Throws for a prefix that cannot be part of every name of an engine. */
export function checkPrefix (prefix: string): void {
  if (!/^[A-Za-z0-9_-]{1,32}$/.test(prefix)) throw new Error(`fastify-devices: the prefix "${prefix}" is wrong: 1 to 32 of A-Z a-z 0-9 _ -`)
}
