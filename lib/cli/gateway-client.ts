import type { Invocation } from './command.ts'
import { CommandFailure, messageOf } from './command-failure.ts'
import { exitOf } from './exit-codes.ts'
import { MAX_DELAY_SECONDS } from './flags.ts'

const DEFAULT_URL = 'http://127.0.0.1:3000'
/** Time for an answer, in addition to the time that the gateway was asked to wait for a device. */
const ANSWER_TIMEOUT_SECONDS = 60
/** Records in one answer. */
const PAGE_SIZE = 1_000

export interface GatewayRequest {
  query?: Readonly<Record<string, string | number | boolean | undefined>>
  headers?: Readonly<Record<string, string>>
  body?: string | undefined
  /** Seconds that the gateway was asked to wait. */
  wait?: number | undefined
}

/** Where the gateway is, and the token for it. */
export function gatewayAddress ({ flags }: Pick<Invocation, 'flags'>): { url: URL, token: string | undefined } {
  const text = flags.text('url') ?? DEFAULT_URL
  if (!URL.canParse(text)) throw new CommandFailure('usage', `"${text}" is not a URL`)
  const url = new URL(text)
  if (url.protocol !== 'http:' && url.protocol !== 'https:') throw new CommandFailure('usage', `The URL of a gateway begins with http:// or https://, not with "${url.protocol}"`)
  if (url.username !== '' || url.password !== '') throw new CommandFailure('usage', 'A URL must not contain a name or a password; give a token with FASTIFY_DEVICES_TOKEN or --token')
  return { url, token: flags.token() }
}

/** The REST interface of a gateway. */
export class GatewayClient {
  readonly #url: URL
  readonly #headers: Readonly<Record<string, string>>
  readonly #signal: AbortSignal

  constructor (invocation: Pick<Invocation, 'flags' | 'terminal'>) {
    const { url, token } = gatewayAddress(invocation)
    this.#url = url
    this.#headers = token === undefined ? {} : { authorization: `Bearer ${token}` }
    this.#signal = invocation.terminal.signal
  }

  /** Resolves with the body of the answer; bytes become `{base64}`. */
  async request (method: string, path: readonly string[], { wait = 0, ...request }: GatewayRequest = {}): Promise<any> {
    const deadline = AbortSignal.timeout(Math.ceil(Math.min(wait + ANSWER_TIMEOUT_SECONDS, MAX_DELAY_SECONDS) * 1_000))
    const response = await this.open(method, path, request, deadline)
    try {
      return await contentOf(response)
    } catch (error) {
      throw this.#unreachable(error)
    }
  }

  /** Reads a list page by page. */
  async * pages (path: readonly string[], query: GatewayRequest['query'] = {}): AsyncGenerator<any> {
    let cursor: string | number | undefined
    do {
      const page = await this.request('GET', path, { query: { ...query, limit: PAGE_SIZE, cursor } })
      yield page
      cursor = page.cursor
    } while (cursor !== undefined)
  }

  /** Resolves with a successful answer, whose body is still to be read. */
  async open (method: string, path: readonly string[], { query = {}, headers = {}, body }: GatewayRequest, signal: AbortSignal): Promise<Response> {
    const url = this.#urlOf(path, query)
    const response = await fetch(url, {
      method, headers: { ...this.#headers, ...headers }, redirect: 'manual', signal: AbortSignal.any([signal, this.#signal]), ...(body !== undefined && { body })
    }).catch(error => { throw this.#unreachable(error) })
    if (response.ok) return response
    throw await refusal(response)
  }

  /** The URL of the gateway may have a path: the option `prefix` of the plugin. */
  #urlOf (path: readonly string[], query: NonNullable<GatewayRequest['query']>): URL {
    const wrong = path.find(segment => /^\.{0,2}$/.test(segment)) // these change the path instead of being a part of it
    if (wrong !== undefined) throw new CommandFailure('usage', `"${wrong}" is not an id`)
    const url = new URL(this.#url)
    url.pathname = [url.pathname.replace(/\/+$/, ''), ...path.map(encodeURIComponent)].join('/')
    for (const [name, value] of Object.entries(query)) if (value !== undefined) url.searchParams.set(name, String(value))
    return url
  }

  #unreachable (error: unknown): CommandFailure {
    const cause = (error as { cause?: NodeJS.ErrnoException } | undefined)?.cause
    const why = cause?.code ?? cause?.message ?? messageOf(error)
    const hint = cause?.code === 'ECONNREFUSED' ? '; start one with fastify-devices serve, or name another with --url' : ''
    return new CommandFailure('unreachable', `The gateway ${this.#url.origin} cannot be reached: ${why}${hint}`)
  }
}

async function contentOf (response: Response): Promise<unknown> {
  const bytes = Buffer.from(await response.arrayBuffer())
  return isJson(response) ? JSON.parse(bytes.toString()) : { base64: bytes.toString('base64') }
}

async function refusal (response: Response): Promise<CommandFailure> {
  const { status } = response
  const { code, message, device } = await errorOf(response)
  if (message === undefined || (status === 404 && code === undefined)) {
    return new CommandFailure(exitOf(undefined, status), `Unexpected answer ${status}: the URL is that of something else, or of a gateway with another prefix`, { statusCode: status })
  }
  return new CommandFailure(exitOf(code, status), String(message), { statusCode: status, code, ...(device !== undefined && { device }) })
}

/** The error in the body of an answer, empty if the answer is not one of a gateway. */
async function errorOf (response: Response): Promise<{ code?: string, message?: unknown, device?: unknown }> {
  try {
    return Object(await response.json())
  } catch {
    return {}
  }
}

function isJson (response: Response): boolean {
  return response.headers.get('content-type')?.startsWith('application/json') === true
}
