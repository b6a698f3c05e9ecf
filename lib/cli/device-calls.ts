import { Client, Failure, type ConnectOptions } from '../client/index.ts'

type AnswerParameters = Parameters<Client['answer']>

/** A call or a notice of the gateway. */
export type DeviceCall = AnswerParameters[0]

/** Answers any method; the signal is aborted when the connection ends. */
export type CallAnswerer = (call: DeviceCall, signal: AbortSignal) => unknown

/** Requests that the SDK itself answers. */
const sdkMethods = new Set(['welcome', 'message'])

/** A device that answers the calls of all methods with one function. */
export class AnsweringDevice extends Client {
  readonly #answerer: CallAnswerer

  constructor (url: string, options: ConnectOptions, answerer: CallAnswerer) {
    super(url, options)
    this.#answerer = answerer
  }

  override answer (...[request, inbound]: AnswerParameters): unknown {
    return sdkMethods.has(request.method) ? super.answer(request, inbound) : this.#answerer(request, inbound.signal)
  }
}

interface OpenCall {
  answer (result: unknown): void
  refuse (failure: Failure): void
}

/** Calls that wait for an answer, in order. */
export class OpenCalls {
  readonly #calls = new Set<OpenCall>()

  /** The oldest call. */
  get first (): OpenCall | undefined {
    return this.#calls.values().next().value
  }

  /** Resolves with the answer. The call is dropped when its connection ends. */
  async wait (signal: AbortSignal): Promise<unknown> {
    return await new Promise((answer, refuse) => {
      const call = { answer: settleWith(answer), refuse: settleWith(refuse) }
      const drop = () => call.refuse(new Failure('dropped'))
      const calls = this.#calls.add(call)
      signal.addEventListener('abort', drop, { once: true })

      function settleWith<T> (settle: (value: T) => void): (value: T) => void {
        return value => {
          calls.delete(call)
          signal.removeEventListener('abort', drop)
          settle(value)
        }
      }
    })
  }
}
