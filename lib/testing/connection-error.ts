import type { IncomingMessage } from 'node:http'
import type { CloseNotice } from '../protocol/close-notice.ts'

interface ConnectionErrorDetails {
  statusCode?: number
  code?: string
  closeCode?: number
}

/** A device was not welcomed: the server refused its request (`statusCode`, `code`), or closed the connection first (`closeCode`). */
export class ConnectionError extends Error {
  /** The HTTP status of the refusal. */
  declare readonly statusCode?: number
  /** The code in the body of the refusal, such as `UNAUTHENTICATED`. */
  declare readonly code?: string
  declare readonly closeCode?: number

  constructor (message: string, details: ConnectionErrorDetails) {
    super(message)
    this.name = 'ConnectionError'
    Object.assign(this, details)
  }
}

/** Reads the error from an HTTP response. */
export function readRefusal (deviceId: string, response: IncomingMessage, done: (refusal: ConnectionError) => void): void {
  let body = ''
  response.setEncoding('utf8').on('data', chunk => { body += chunk })
  response.once('close', () => done(refusalOf(deviceId, response.statusCode!, body)))
}

/** A hook of the application may have answered with anything. */
function refusalOf (deviceId: string, statusCode: number, body: string): ConnectionError {
  const { code, message = body } = parsed(body)
  return new ConnectionError(`The device "${deviceId}" was refused: ${statusCode} ${code === undefined ? '' : `${code}: `}${message}`, { statusCode, ...(code !== undefined && { code }) })
}

export function endedBeforeWelcome (deviceId: string, { code, reason }: CloseNotice): ConnectionError {
  return new ConnectionError(`The device "${deviceId}" was not welcomed: the connection ended with code ${code}${reason === '' ? '' : `: ${reason}`}`, { closeCode: code })
}

function parsed (body: string): { code?: string, message?: string } {
  try {
    return JSON.parse(body)
  } catch {
    return {}
  }
}
