const MIN_MAJOR_VERSION = 7

/** Throws if the server cannot be used. `info` is its answer to `INFO`. */
export function checkServer (info: string): void {
  const fields = new Map(info.split('\r\n').map(line => line.split(':', 2) as [string, string]))
  const version = fields.get('redis_version') ?? 'unknown'
  const policy = fields.get('maxmemory_policy') ?? 'noeviction'
  const mode = fields.get('redis_mode') ?? fields.get('server_mode') // of Valkey
  if (mode === 'cluster') throw new Error('Redis Cluster is not supported: use one server, or Sentinel')
  if (!(Number.parseInt(version) >= MIN_MAJOR_VERSION)) throw new Error(`Redis ${version} is too old: version ${MIN_MAJOR_VERSION} is needed`)
  if (fields.get('role') === 'slave') throw new Error('the server is a replica: connect to its master, or through Sentinel')
  if (policy.startsWith('allkeys')) throw new Error(`maxmemory-policy is ${policy}, which drops letters: set it to noeviction`)
}
