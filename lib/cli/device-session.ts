import { createInterface } from 'node:readline'
import { WebSocket } from 'ws'
import { Failure, Refusal, type Received, type Status } from '../client/index.ts'
import type { Invocation } from './command.ts'
import { CommandFailure, messageOf } from './command-failure.ts'
import { AnsweringDevice, OpenCalls, type DeviceCall } from './device-calls.ts'
import { exitOf, type Exit } from './exit-codes.ts'
import { jsonOrText } from './message-data.ts'
import { printable } from './printable.ts'

/** What a session prints. */
interface SessionRecord {
  type: 'status' | 'message' | 'call' | 'notice'
  [member: string]: unknown
}

export interface SessionOptions {
  deviceId: string
  /** Where devices connect. */
  url: URL
  token: string | undefined
  /** A topic to listen to. */
  topic: string | undefined
  /** Answers calls; without it a line of the input does. */
  answerOf: ((params: unknown) => unknown) | undefined
}

const hint = 'A line that you type answers the oldest open call: JSON or text, or !text to refuse it. Without an open call, it is a message to the gateway. Ctrl-C ends.'

/** A connected device whose input and output are those of a command. */
export class DeviceSession {
  readonly #invocation: Invocation
  readonly #answerOf: SessionOptions['answerOf']
  readonly #device: AnsweringDevice
  /** Resolves with whether the record was printed; if not, the session ends. */
  readonly #print: (record: SessionRecord) => Promise<boolean>
  readonly #calls = new OpenCalls()
  readonly #outcome: Promise<Exit | void>
  #finish!: (exit: Exit | void) => void
  #fail!: (error: unknown) => void
  #isReading = false
  #lastFailure: Exit | undefined

  constructor (invocation: Invocation, { deviceId, url, token, topic, answerOf }: SessionOptions) {
    this.#invocation = invocation
    this.#answerOf = answerOf
    this.#print = this.#printer()
    this.#outcome = new Promise((resolve, reject) => {
      this.#finish = resolve
      this.#fail = reject
    })
    this.#device = new AnsweringDevice(url.href, { deviceId, WebSocket: socketWith(token) }, (call, signal) => this.#answer(call, signal))
    this.#device.on('status', status => this.#changed(status)).on('message', message => this.#received(message)).on('error', error => this.#invocation.output.note(printable(messageOf(error))))
    if (topic !== undefined) this.#device.subscribe(topic, () => {}) // the listener of all messages prints them
  }

  /** Runs until the input ends, the gateway ends the connection for good, or a signal arrives. */
  async run (): Promise<Exit | void> {
    const { signal, stdin } = this.#invocation.terminal
    const interrupt = () => this.#fail(signal.reason)
    signal.addEventListener('abort', interrupt)
    try {
      return await this.#outcome
    } finally {
      signal.removeEventListener('abort', interrupt)
      this.#device.close()
      stdin.destroy() // an open input would keep the process alive
    }
  }

  #printer (): (record: SessionRecord) => Promise<boolean> {
    const print = this.#invocation.output.table<SessionRecord>([
      { title: 'EVENT', of: ({ type }) => type, width: 9 },
      { title: 'WHAT', of: ({ state, topic, method }) => state ?? method ?? topic, width: 12 },
      { title: 'DATA', of: ({ data, params, reason }) => data ?? params ?? reason }
    ])
    return async record => {
      try {
        await print([record])
        return true
      } catch (error) {
        this.#fail(error)
        return false
      }
    }
  }

  async #changed (status: Status): Promise<void> {
    if (status.state === 'connecting') return
    // The SDK retries for ever, but a wrong address or token should end the command.
    if (status.state === 'waiting' && !this.#isReading) return this.#fail(refusal(status))
    if (status.state === 'stopped') return this.#fail(new CommandFailure('dropped', `The gateway ended the connection: ${status.code} ${status.reason}`))
    await this.#print({ type: 'status', ...status })
    if (!this.#isReading) await this.#readInput()
  }

  async #received ({ id, data, topic }: Received): Promise<void> {
    const isPrinted = await this.#print({ type: 'message', id, data, ...(topic !== undefined && { topic }) })
    if (!isPrinted) throw new Failure('internal') // so a letter is not acknowledged
  }

  async #answer (call: DeviceCall, signal: AbortSignal): Promise<unknown> {
    await this.#print({ type: call.kind, method: call.method, params: call.params })
    if (call.kind === 'notice') return undefined
    return this.#answerOf ? this.#answerOf(call.params) : await this.#calls.wait(signal)
  }

  /** Takes lines from the first connection on. The end of the input ends the session, unless calls are answered without it. */
  async #readInput (): Promise<void> {
    this.#isReading = true
    const { terminal: { stdin }, output } = this.#invocation
    if (stdin.isTTY && output.isTerminal) await output.note(output.style('dim', hint))
    for await (const line of createInterface({ input: stdin })) {
      const taken = this.#take(line)
      if (!stdin.isTTY) await taken // a file is sent no faster than the gateway takes it
    }
    if (!this.#answerOf) this.#finish(this.#lastFailure)
  }

  async #take (line: string): Promise<void> {
    if (line.trim() === '') return
    const call = this.#calls.first
    try {
      if (!call) await this.#device.call('message', { data: jsonOrText(line) })
      else if (line.startsWith('!')) call.refuse(new Refusal(line.slice(1).trim()))
      else call.answer(jsonOrText(line))
    } catch (error) {
      this.#lastFailure = error instanceof Failure ? exitOf(error.code, error.statusCode) : 'usage'
      await this.#invocation.output.note(`${call ? 'Not answered' : 'Not taken'}: ${printable(error instanceof Failure && error.device?.message || messageOf(error))}`)
    }
  }
}

/** A header can carry tokens that a subprotocol cannot. */
function socketWith (token: string | undefined): new (url: string, protocols: string[]) => WebSocket {
  const headers = token === undefined ? {} : { authorization: `Bearer ${token}` }
  return class extends WebSocket {
    constructor (url: string, protocols: string[]) {
      super(url, protocols, { headers })
    }
  }
}

function refusal ({ code, reason = '' }: Status): CommandFailure {
  const status = Number(/^Unexpected server response: (\d{3})$/.exec(reason)?.[1])
  if (!status) return new CommandFailure('unreachable', `The gateway cannot be reached: ${reason || `the connection ended with ${code}`}`)
  return new CommandFailure(exitOf(undefined, status), `The gateway refused the device: HTTP ${status}`, { statusCode: status })
}
