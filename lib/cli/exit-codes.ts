interface ExitCode {
  code: number
  when: string
  /** The codes of the gateway that lead to it. */
  reasons: readonly string[]
}

/** Every exit code. docs/cli.md has the same table. */
export const exitCodes = {
  ok: { code: 0, when: 'The command succeeded, or the reader of its output has closed the pipe', reasons: [] },
  failed: { code: 1, when: 'Any other failure', reasons: ['INTERNAL_ERROR'] },
  usage: { code: 2, when: 'The command, a flag or an argument is wrong; nothing was sent', reasons: [] },
  unreachable: { code: 3, when: 'The gateway does not answer, is leaving, or has lost the other nodes', reasons: ['NODE_DRAINING', 'BACKPLANE_DOWN'] },
  unauthorized: { code: 4, when: 'The token is missing or wrong, or does not allow this', reasons: ['UNAUTHENTICATED', 'FORBIDDEN', 'PROTECTED_MODE', 'ORIGIN_REFUSED'] },
  offline: { code: 5, when: 'The device is not connected', reasons: ['DEVICE_OFFLINE', 'DEVICE_DEPARTED'] },
  timeout: { code: 6, when: 'The device did not answer in time', reasons: ['DEVICE_TIMEOUT'] },
  refused: { code: 7, when: 'The device answered with an error, has no such method, or gave an invalid answer', reasons: ['DEVICE_REFUSED', 'METHOD_UNKNOWN', 'DEVICE_ANSWER_INVALID'] },
  dropped: { code: 8, when: 'The connection of the device ended', reasons: ['DEVICE_DROPPED'] },
  busy: { code: 9, when: 'A limit is reached; try again later', reasons: ['RATE_EXCEEDED', 'CALLS_EXCEEDED', 'DEVICE_CONGESTED', 'MAILBOX_FULL', 'TOPICS_EXCEEDED', 'STORE_FULL', 'READERS_EXCEEDED'] },
  conflict: { code: 10, when: 'There is no such letter, it has already ended, or the key was used for another message', reasons: ['MESSAGE_UNKNOWN', 'MESSAGE_SETTLED', 'IDEMPOTENCY_MISMATCH'] },
  invalid: {
    code: 11,
    when: 'The gateway did not accept the request: an invalid id, topic, duration or message',
    reasons: ['MESSAGE_UNREADABLE', 'MESSAGE_MALFORMED', 'MESSAGE_TOO_LARGE', 'PARAMS_INVALID', 'TOPIC_INVALID', 'ID_INVALID', 'TYPE_UNSUPPORTED', 'PROTOCOL_UNKNOWN', 'UPGRADE_REQUIRED']
  },
  interrupted: { code: 130, when: 'Ctrl-C (`SIGINT`); a gateway that listens exits with 0', reasons: [] },
  terminated: { code: 143, when: '`SIGTERM`; a gateway that listens exits with 0', reasons: [] }
} as const satisfies Record<string, ExitCode>

export type Exit = keyof typeof exitCodes

const byReason = new Map(Object.entries(exitCodes).flatMap(([exit, { reasons }]) => reasons.map((reason): [string, Exit] => [reason, exit as Exit])))

const byStatus = new Map<number, Exit>([
  [400, 'invalid'], [401, 'unauthorized'], [403, 'unauthorized'], [413, 'invalid'], [414, 'invalid'], [415, 'invalid'], [429, 'busy'], [502, 'unreachable'], [503, 'unreachable'], [504, 'unreachable']
])

/** The exit of a refused request. A code that is not ours (of Fastify, of a proxy) counts by its status. */
export function exitOf (code: string | undefined, status: number): Exit {
  return byReason.get(code ?? '') ?? byStatus.get(status) ?? 'failed'
}
