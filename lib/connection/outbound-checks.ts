/**
 * Checks what goes to devices, and what they answer. Each function returns the value to use, or throws a `Failure` if the value does not fit. They are
 * synchronous, so that messages do not overtake each other.
 */
export interface OutboundChecks {
  /** Whether the contract names a method of devices. */
  declares (method: string): boolean
  params (method: string, params: unknown): unknown
  result (method: string, result: unknown): unknown
  message (data: unknown): unknown
  publication (topic: string, data: unknown): unknown
}

/** Makes a call whose params and result are checked. */
export function checkedCall (checks: OutboundChecks, method: string, params: unknown, call: (params: unknown) => Promise<unknown>): Promise<unknown> {
  try {
    return call(checks.params(method, params)).then(result => checks.result(method, result))
  } catch (error) {
    return Promise.reject(error)
  }
}
