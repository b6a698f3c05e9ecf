import { connect as dial, type Socket } from 'node:net'

/** Every candidate answers this, at least with 404. */
const probeRequest = Buffer.from('GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n')
const CHUNKED_END = '0\r\n\r\n'

/** A POST request as bytes. */
export function post (path: string, body: string, type = 'application/json'): Buffer {
  return Buffer.from(`POST ${path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: ${type}\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`)
}

/** A REST caller with one keep-alive connection. Answers are delimited, but not parsed. */
export class Caller {
  /** Called for each answer; `ok` means a 2xx status. */
  onAnswer: (ok: boolean) => void = () => {}
  readonly #socket: Socket
  #partial = ''

  private constructor (port: number) {
    this.#socket = dial({ port, host: '127.0.0.1', noDelay: true })
    this.#socket.setEncoding('latin1')
    this.#socket.on('data', (text: string) => this.#read(text))
  }

  /** Resolves once the server has accepted all connections: Node accepts one per tick, which takes long when the server is busy. */
  static async connect (port: number, count: number): Promise<Caller[]> {
    return await Promise.all(Array.from({ length: count }, () => new Promise<Caller>(resolve => {
      const caller = new Caller(port)
      caller.onAnswer = () => resolve(caller)
      caller.write(probeRequest)
    })))
  }

  write (request: Buffer): void {
    this.#socket.write(request)
  }

  end (): void {
    this.#socket.destroy()
  }

  #read (text: string): void {
    this.#partial += text
    for (let end = endOfAnswer(this.#partial); end > 0 && end <= this.#partial.length; end = endOfAnswer(this.#partial)) {
      const ok = this.#partial[9] === '2'
      this.#partial = this.#partial.slice(end)
      this.onAnswer(ok)
    }
  }
}

/** Where the first answer ends; `Infinity` while that is unknown. */
function endOfAnswer (text: string): number {
  const head = text.indexOf('\r\n\r\n')
  if (head === -1) return Infinity
  const [, length] = text.slice(0, head).match(/content-length: (\d+)/i) ?? []
  if (length !== undefined) return head + 4 + Number(length)
  const end = text.indexOf(`\r\n${CHUNKED_END}`, head + 4)
  return end === -1 ? Infinity : end + 2 + CHUNKED_END.length
}
