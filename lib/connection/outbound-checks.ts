import type { FastifyBaseLogger } from 'fastify'
import { isThenable } from '../protocol/peer.ts'

/**
 * Checks what goes to devices, and what they answer. Each function returns the value to use, or a promise of it; it throws a `Failure`, or rejects with
 * one, if the value does not fit.
 */
export interface OutboundChecks {
  params (method: string, params: unknown): unknown
  result (method: string, result: unknown): unknown
  message (data: unknown): unknown
  publication (topic: string, data: unknown): unknown
}

/** Makes a call whose params and result are checked. */
export async function checkedCall (checks: OutboundChecks, method: string, params: unknown, call: (params: unknown) => Promise<unknown>): Promise<unknown> {
  return await checks.result(method, await call(await checks.params(method, params)))
}

/** Sends a message that is checked, at once unless a schema takes its time; then nobody waits, so a failure is only logged. */
export function checkedSend ({ checks, log }: { checks?: OutboundChecks | undefined, log: FastifyBaseLogger }, deviceId: string, data: unknown, send: (data: unknown) => void): void {
  const checked = checks?.message(data)
  if (!checks) send(data)
  else if (!isThenable(checked)) send(checked)
  else void Promise.resolve(checked).then(send).catch((error: unknown) => log.warn({ err: error, deviceId }, 'message to device failed'))
}
