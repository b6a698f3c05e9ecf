/** Says who publishes events to the other nodes, and whether publications are missing. */
export interface BatchHeader {
  node: string
  /** The process that publishes; a new one after each start. */
  source: string
  /** Grows by one with each publication of the source, and skips one when events were not published. */
  sequence: number
  /** The last publication: the node closes. */
  isLast: boolean
}

export interface BatchedEvent {
  type: string
  json: string
}

/** The first line is the header; each further line is the type of an event and its JSON, which the receiver passes on as it is. */
export function encodeBatch (header: BatchHeader, events: BatchedEvent[]): Buffer {
  return Buffer.from([JSON.stringify(header), ...events.map(({ type, json }) => `${type} ${json}`)].join('\n'))
}

export function decodeBatch (batch: Buffer): { header: BatchHeader, events: BatchedEvent[] } {
  const [header, ...lines] = batch.toString().split('\n')
  return { header: JSON.parse(header!), events: lines.map(eventOf) }
}

function eventOf (line: string): BatchedEvent {
  const end = line.indexOf(' ')
  return { type: line.slice(0, end), json: line.slice(end + 1) }
}
