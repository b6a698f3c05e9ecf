import type { MethodHandler, Received } from '../client/index.ts'
import type { Contract } from '../protocol/contract.ts'
import { checkOptionNames } from '../protocol/option-names.ts'

/** A message that a device has received. */
export interface InjectedMessage extends Received {
  /** The server waits for its acknowledgement: it is a letter, or was sent with `confirm`. */
  isLetter: boolean
}

export interface InjectOptions {
  /** Id of the device. */
  deviceId: string
  /**
   * The contract of the server, for the types of the device. The server checks what it names; the device checks nothing.
   * @default undefined
   */
  contract?: Contract
  /**
   * The methods that the server may call on the device. A handler refuses with a `Refusal`, whose code, message and data the server gets; any other error is an internal error.
   * @default {}
   */
  handlers?: Record<string, MethodHandler>
  /**
   * Processes each message. A letter is acknowledged once it has returned or resolved. If it throws, the letter is sent again; a `Refusal` refuses the letter.
   * @default every message is accepted
   */
  onMessage?: (message: InjectedMessage) => unknown
  /**
   * A token for `authenticate`, sent as the subprotocol `bearer.<token>`.
   * @default undefined
   */
  token?: string
  /**
   * Headers of the request, such as `authorization` or `origin`.
   * @default {}
   */
  headers?: Record<string, string>
  /**
   * Parameters of the URL, in addition to `deviceId`.
   * @default {}
   */
  query?: Record<string, string>
  /**
   * Path where devices connect: the options `prefix` and `path` of the plugin.
   * @default '/ws'
   */
  path?: string
  /**
   * The subprotocol that the device offers. The device speaks JSON-RPC, whatever its name is.
   * @default 'jsonrpc'
   */
  protocol?: string
  /**
   * The address that the server sees. With another one than that of this machine, protected mode refuses the device.
   * @default '127.0.0.1'
   */
  remoteAddress?: string
  /**
   * Milliseconds to connect, to wait for an answer, and to wait for a message with `next`.
   * @default 10_000
   */
  timeout?: number
}

export type InjectSettings = Required<Omit<InjectOptions, 'token' | 'contract'>> & { token: string | undefined }

const OPTION_NAMES: Record<keyof InjectOptions, true> = {
  deviceId: true, contract: true, handlers: true, onMessage: true, token: true, headers: true, query: true, path: true, protocol: true, remoteAddress: true, timeout: true
}

/** Checks the names of the options and fills in the defaults. */
export function injectSettings (options: InjectOptions): InjectSettings {
  checkOptionNames('injectDevice()', options, OPTION_NAMES)
  const {
    deviceId, handlers = {}, onMessage = () => {}, token, headers = {}, query = {}, path = '/ws', protocol = 'jsonrpc', remoteAddress = '127.0.0.1', timeout = 10_000
  } = options
  return { deviceId, handlers, onMessage, token, headers, query, path, protocol, remoteAddress, timeout }
}
