/** A change of the master, in Unix milliseconds. */
export interface Failover {
  /** When the Sentinel that led it took the master for down, or was asked for a failover. */
  began: number
  /** When that Sentinel knew the new master. */
  ended: number
}

const EVENT = /^\d+:X (\d+ \w+ \d+ [\d:.]+) [#*] (\+sdown master|-sdown master|\+try-failover|\+promoted-slave|\+switch-master)/gm

/** The failovers that a Sentinel led, from its log. */
export function failoversIn (log: string): Failover[] {
  const failovers: Failover[] = []
  let downSince: number | undefined
  let triedAt = 0
  let promoted: Failover | undefined
  for (const [, time, event] of log.matchAll(EVENT)) {
    const at = Date.parse(time!)
    if (event === '+sdown master') downSince = at
    else if (event === '-sdown master') downSince = undefined
    else if (event === '+try-failover') triedAt = downSince ?? at
    else if (event === '+promoted-slave') failovers.push(promoted = { began: triedAt, ended: at })
    else {
      if (promoted) promoted.ended = at
      promoted = downSince = undefined
    }
  }
  return failovers
}
