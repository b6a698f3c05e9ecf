import { createServer, type Server } from 'node:http'

/** As in Fastify: callers that have to wait for their turn are not cut off. */
const keepAliveTimeout = 72_000

/** A bare HTTP server: every request is a POST, and `answer` is given the parts of its path and its body. */
export function posts (answer: (path: string[], body: string) => unknown): Server {
  return createServer({ keepAliveTimeout }, (request, response) => {
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
