import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import type { FastifyInstance } from 'fastify'

const page = new URL('page/', import.meta.url)
const library = new URL('../', import.meta.url)

const types: Record<string, string> = {
  html: 'text/html; charset=utf-8',
  css: 'text/css; charset=utf-8',
  js: 'text/javascript; charset=utf-8',
  svg: 'image/svg+xml'
}

const headers = {
  'cache-control': 'no-cache', // cached, and revalidated on each use: a changed file is used at once
  'content-security-policy': "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
  'cross-origin-resource-policy': 'same-origin',
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff'
}

/** The routes of the page, of its files, and of the SDK that it uses. Files are read once, so no request can reach another file. */
export function addFiles (scope: FastifyInstance, { rest, socket }: { rest: string, socket: string }): void {
  const here = scope.prefix.split('/').filter(Boolean)
  const up = here.length === 0 ? './' : '../'.repeat(here.length)
  const html = readFileSync(new URL('index.html', page), 'utf8')
    .replace('{{rest}}', attribute(`${up}${rest.slice(1)}${rest === '' ? '' : '/'}`))
    .replace('{{socket}}', attribute(up + socket.slice(1)))

  function serve (url: string, file: URL, body: string | Buffer = readFileSync(file)): void {
    const etag = `"${createHash('sha256').update(body).digest('base64url')}"`
    const type = types[file.pathname.split('.').pop()!]!
    scope.get(url, { schema: { hide: true } }, async (request, reply) => {
      // relative, because a proxy may have removed a part of the path
      if (url === '/' && !request.url.split('?')[0]!.endsWith('/')) return await reply.redirect(`${here.at(-1)!}/`)
      reply.headers({ ...headers, etag })
      if (request.headers['if-none-match'] === etag) return await reply.code(304).send()
      return await reply.type(type).send(body)
    })
  }

  serve('/', new URL('index.html', page), html)
  for (const name of readdirSync(page)) if (!name.endsWith('.html')) serve(`/page/${name}`, new URL(name, page))
  for (const file of modules(new URL('client/index.js', library))) serve(file.href.replace(library.href, '/sdk/'), file)
}

/** A module and everything it imports. */
function modules (file: URL, found: URL[] = []): URL[] {
  if (found.some(({ href }) => href === file.href)) return found
  found.push(file)
  const imports = readFileSync(file, 'utf8').matchAll(/^(?:import|export)\b[^'"]*?\bfrom ['"](\.[^'"]+)['"]/gm)
  for (const [, path] of imports) modules(new URL(path!, file), found)
  return found
}

function attribute (text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('"', '&quot;')
}
