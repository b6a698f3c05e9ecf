import { createServer, type Server } from 'node:http'

/** The default of Fastify; idle callers keep their connection. */
const keepAliveTimeout = 72_000

/** A bare HTTP server for POSTs. `answer` gets the path segments and the body. */
export function postServer (answer: (path: string[], body: string) => unknown): Server {
  return createServer({ keepAliveTimeout }, (request, response) => {
    if (request.method !== 'POST') return void response.writeHead(404, { 'content-length': 0 }).end()
    let body = ''
    request.setEncoding('utf8')
    request.on('data', (text: string) => { body += text })
    request.on('end', async () => {
      const text = JSON.stringify(await answer(request.url!.slice(1).split('/'), body))
      response.writeHead(200, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) })
      response.end(text)
    })
  })
}
