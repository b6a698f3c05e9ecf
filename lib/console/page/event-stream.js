/** Reads server-sent events: text in, `{ id, type, data }` out. */
export class EventStreamParser {
  #text = ''

  /** Returns the events that a further piece of the stream completes; comments are skipped. */
  push (text) {
    const blocks = (this.#text + text).split('\n\n')
    this.#text = blocks.pop()
    return blocks.map(eventOf).filter(({ data }) => data !== '')
  }
}

function eventOf (block) {
  const fields = { id: undefined, event: 'message', data: [] }
  for (const line of block.split('\n')) {
    const [, name, value] = /^([a-z]+): ?(.*)$/.exec(line) ?? []
    if (name === 'data') fields.data.push(value)
    else if (name === 'id' || name === 'event') fields[name] = value
  }
  return { id: fields.id, type: fields.event, data: fields.data.join('\n') }
}
