import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import type { FastifyPluginAsync } from 'fastify'

const root = import.meta.resolve('fastify-devices/package.json')
const folder = new URL('example/page/', root)
const sdk = new URL('dist/lib/', root)

const types: Record<string, string> = {
  html: 'text/html; charset=utf-8',
  css: 'text/css; charset=utf-8',
  js: 'text/javascript; charset=utf-8',
  svg: 'image/svg+xml'
}

const headers = {
  'cache-control': 'no-cache', // cached, and revalidated on each use: a changed file is used at once
  'content-security-policy': "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff'
}

/** A page at `/`, and the SDK that it uses. Files are read once, at the start, so no request can reach another file. */
export const page: FastifyPluginAsync = async app => {
  function serve (url: string, file: URL): void {
    const body = readFileSync(file)
    const etag = `"${createHash('sha256').update(body).digest('base64url')}"`
    const type = types[file.pathname.split('.').pop()!]!
    app.get(url, async (request, reply) => {
      reply.headers({ ...headers, etag })
      if (request.headers['if-none-match'] === etag) return await reply.code(304).send()
      return await reply.type(type).send(body)
    })
  }

  serve('/', new URL('index.html', folder))
  for (const name of readdirSync(folder)) serve(`/page/${name}`, new URL(name, folder))
  for (const file of modules(new URL('client/index.js', sdk))) serve(file.href.replace(sdk.href, '/sdk/'), file)
}

/** A module and everything it imports. */
function modules (file: URL, found: URL[] = []): URL[] {
  if (found.some(({ href }) => href === file.href)) return found
  found.push(file)
  const imports = readFileSync(file, 'utf8').matchAll(/^(?:import|export)\b[^'"]*?\bfrom ['"](\.[^'"]+)['"]/gm)
  for (const [, path] of imports) modules(new URL(path!, file), found)
  return found
}
