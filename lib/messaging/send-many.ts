import { Failure } from '../protocol/errors.ts'
import { BulkSender, type BulkMessage, type BulkOptions } from './bulk.ts'
import { SendOptionsSchema, type Dispatcher, type SendResult } from './dispatcher.ts'

interface ReadResult {
  message: IteratorResult<BulkMessage | Failure, unknown>
}

const { signal: _signal, request: _request, ...bulkOptions } = SendOptionsSchema.properties
const bulkMembers = { to: true, data: true, ...bulkOptions }

/** Sends messages while the outcomes are consumed, and yields the outcomes in the order of the messages. */
export async function * sendMany (
  dispatcher: Dispatcher,
  messages: Iterable<BulkMessage | Failure> | AsyncIterable<BulkMessage | Failure>,
  options: BulkOptions
): AsyncGenerator<SendResult | Failure> {
  const source = Symbol.asyncIterator in messages ? messages[Symbol.asyncIterator]() : messages[Symbol.iterator]()
  const read = () => {
    const result = (async (): Promise<ReadResult> => ({ message: await source.next() }))()
    result.catch(() => {}) // handled by the race below, which may come later
    return result
  }
  let wake!: () => void
  const sender = new BulkSender(dispatcher, () => wake(), options)
  let reading: Promise<ReadResult> | undefined = read()
  try {
    for (;;) {
      for (let outcome = sender.take(); outcome; outcome = sender.take()) yield outcome
      if (!reading && sender.isEmpty) return
      const settled = sender.isEmpty ? undefined : new Promise<undefined>(resolve => { wake = () => resolve(undefined) })
      const next: ReadResult | undefined = await Promise.race([sender.isFull ? undefined : reading, settled].filter(one => one !== undefined))
      if (!next) continue
      if (!next.message.done) sender.add(checkedMessage(next.message.value as BulkMessage | Failure))
      reading = next.message.done ? undefined : read()
    }
  } finally {
    // not awaited: an async generator returns only after its pending `next`
    Promise.resolve(source.return?.()).catch(() => {})
  }
}

/** A message with an unknown member fails alone, in its place. */
function checkedMessage (message: BulkMessage | Failure): BulkMessage | Failure {
  if (message instanceof Failure) return message
  for (const name in message) if (!Object.hasOwn(bulkMembers, name)) return new Failure('bad-params', { message: `sendMany() has no option "${name}"` })
  return message
}
