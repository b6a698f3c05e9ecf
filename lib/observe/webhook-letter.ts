import type { FastifyBaseLogger } from 'fastify'
import type { Receipt } from '../storage/mailbox.ts'

/** Begins the names of all endpoints in the mailbox and on the backplane; no device has such a name. */
export const WEBHOOK_PREFIX = '$webhooks/'

/** The type and the device of a stored event. */
export function subjectOf ({ digest = '' }: Pick<Receipt, 'digest'>): { type: string, deviceId: string } {
  const [type, deviceId] = digest.split(' ') as [string, string]
  return { type, deviceId }
}

/** An event that was stored is not sent any more. */
export function logDeadLetter (log: FastifyBaseLogger, webhook: string, letter: Pick<Receipt, 'id' | 'digest'>): void {
  log.error({ webhook, eventId: letter.id, ...subjectOf(letter) }, 'webhook event dead-lettered')
}
