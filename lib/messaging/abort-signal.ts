import type { CallSignal } from '../protocol/peer.ts'

/** A real `AbortSignal`, which backplanes require. */
export function abortSignalOf (signal: CallSignal): AbortSignal {
  if (signal instanceof AbortSignal) return signal
  const controller = new AbortController()
  if (signal.aborted) controller.abort()
  signal.addEventListener('abort', () => controller.abort(), { once: true })
  return controller.signal
}
