import { isIPv4 } from 'node:net'
import { Failure } from '../protocol/errors.ts'
import { hostIn, type Caller } from './caller.ts'

/** Headers that proxies and CDNs add; a name that ends with `*` is a prefix. */
export const proxyHeaders = [
  'forwarded', 'forwarded-for', 'via', 'x-forwarded*', 'x-original-*', 'x-real-ip', 'x-client-ip', 'x-cluster-client-ip', 'x-remote-ip', 'client-ip',
  'true-client-ip', 'cdn-loop', 'cf-*', 'cloudfront-*', 'x-amz-cf-id', 'x-amzn-trace-id', 'x-azure-*', 'x-appengine-*', 'x-cloud-trace-context',
  'x-envoy-*', 'fastly-*', 'fly-*', 'x-akamai-*', 'akamai-*', 'x-vercel-*', 'x-nf-*', 'do-connecting-ip', 'incap-client-ip', 'ali-cdn-real-ip'
]

const exactHeaders = new Set(proxyHeaders.filter(name => !name.endsWith('*')))
const headerPrefixes = proxyHeaders.filter(name => name.endsWith('*')).map(name => name.slice(0, -1))

/**
 * Protected mode: refuses clients of other machines. The host name must be local too: otherwise a web page, opened in a browser on this machine,
 * could connect through a domain of its own that resolves to 127.0.0.1 (DNS rebinding).
 */
export function protect (caller: Caller, option: 'authenticate' | 'guard'): void {
  const { headers } = caller
  if (isFromThisMachine(caller) && isLocalHost(hostIn(headers) ?? 'localhost') && !Object.keys(headers).some(isProxyHeader)) return
  throw new Failure('protected', {
    message: `Protected mode: only this machine may connect. Set the option "${option}" to a function, or to false to admit everyone`
  })
}

/** A missing address alone does not prove that the client is local: a reset connection has none either. */
function isFromThisMachine ({ address, isLocal = false }: Caller): boolean {
  return address === undefined ? isLocal : isLoopback(address)
}

function isProxyHeader (header: string): boolean {
  return exactHeaders.has(header) || headerPrefixes.some(prefix => header.startsWith(prefix))
}

function isLoopback (address: string): boolean {
  const plain = address.startsWith('::ffff:') ? address.slice(7) : address
  return plain === '::1' || (isIPv4(plain) && plain.startsWith('127.'))
}

function isLocalHost (host: string): boolean {
  const name = host.replace(/:\d+$/, '')
  return name === 'localhost' || name === '[::1]' || name.endsWith('.localhost') || isLoopback(name)
}
