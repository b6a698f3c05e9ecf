import type { Contract } from '../protocol/contract.ts'
import { DEVICE_ID } from '../protocol/device-id.ts'
import type { Schema } from '../protocol/schema.ts'
import { jsonSchemaOf } from './json-schema.ts'

interface SocketDescription {
  /** Where devices connect. */
  address: string
  contract: Contract | undefined
}

interface Exchange {
  summary: string
  /** As the server sees it. */
  action: 'send' | 'receive'
  method: string
  params: object
  /** Undefined for a notice, which nobody answers. */
  result?: object
}

/** Describes the WebSocket of devices as an AsyncAPI 3 document: the built-in methods and those of the contract, in JSON-RPC. */
export function asyncApiOf ({ address, contract = {} }: SocketDescription): object {
  const exchanges = new Map(Object.entries(builtinExchanges))
  for (const [name, exchange] of contractExchanges(contract)) exchanges.set(freeName(name, exchanges), exchange)
  const names = [...exchanges]
  return {
    asyncapi: '3.0.0',
    info: { title: 'Devices', version: '1.0.0', description: 'JSON-RPC 2.0 over a WebSocket' },
    defaultContentType: 'application/json',
    channels: { socket: { address, messages: Object.fromEntries(names.flatMap(([name, exchange]) => messagesOf(name, exchange))), bindings: { ws: { query, bindingVersion: '0.1.0' } } } },
    operations: Object.fromEntries(names.map(([name, exchange]) => [name, operationOf(name, exchange)]))
  }
}

const query = { type: 'object', properties: { deviceId: { type: 'string', pattern: DEVICE_ID } }, required: ['deviceId'] }
const text = { type: 'string' }
const filters = { type: 'array', items: text }
const object = (properties: Record<string, object>, required = Object.keys(properties)) => ({ type: 'object', properties, required })

const builtinExchanges: Record<string, Exchange> = {
  welcome: { summary: 'The first message of a connection', action: 'send', method: 'welcome', params: { type: 'object' } },
  subscribe: { summary: 'A device subscribes to topic filters', action: 'receive', method: 'subscribe', params: object({ topics: filters }), result: object({ topics: filters }) },
  unsubscribe: { summary: 'A device unsubscribes from topic filters', action: 'receive', method: 'unsubscribe', params: object({ topics: filters }), result: object({ topics: filters }) },
  publish: { summary: 'A device publishes to a topic', action: 'receive', method: 'publish', params: object({ topic: text, data: {} }, ['topic']), result: { type: 'object' } },
  receive: { summary: 'A device sends a message', action: 'receive', method: 'message', params: object({ data: {} }, []), result: { type: 'object' } },
  ping: { summary: 'A device asks whether the server is alive', action: 'receive', method: 'ping', params: { type: 'object' }, result: object({ now: { type: 'integer' } }) }
}

function contractExchanges ({ methods = {}, commands = {}, topics = {}, message }: Contract): Array<[name: string, exchange: Exchange]> {
  return [
    ['message', messageExchange('Send a message', message, {})],
    ...Object.entries(topics).map(([filter, schema]): [string, Exchange] => [`topic_${filter}`, messageExchange(`Publish to "${filter}"`, schema, { topic: text })]),
    ...Object.entries(methods).map(([method, { params, result }]): [string, Exchange] =>
      [`method_${method}`, { summary: `A device calls "${method}"`, action: 'receive', method, params: jsonSchemaOf(params, 'input'), result: jsonSchemaOf(result, 'output') }]),
    ...Object.entries(commands).map(([method, { params, result }]): [string, Exchange] =>
      [`command_${method}`, { summary: `Call "${method}" of a device`, action: 'send', method, params: jsonSchemaOf(params, 'output'), result: jsonSchemaOf(result, 'input') }])
  ]
}

/** A message that was kept for the device is a call, any other a notice. */
function messageExchange (summary: string, schema: Schema | undefined, members: Record<string, object>): Exchange {
  return { summary, action: 'send', method: 'message', params: object({ id: text, ...members, data: jsonSchemaOf(schema, 'output') }), result: { type: 'object' } }
}

/** Names of the document are of letters, digits and `_`. The messages of an exchange have its name as it is, and before `_result` and `_error`. */
function freeName (name: string, taken: ReadonlyMap<string, unknown>): string {
  const plain = name.replaceAll(/\W/g, '_')
  const isTaken = (name: string) => taken.has(name) || taken.has(name.replace(/_(result|error)$/, '')) || taken.has(`${name}_result`) || taken.has(`${name}_error`)
  let free = plain
  for (let number = 2; isTaken(free); number++) free = `${plain}_${number}`
  return free
}

function messagesOf (name: string, { method, params, result, summary }: Exchange): Array<[name: string, message: object]> {
  const frame = (members: Record<string, object>, required: string[]) => ({ payload: object({ jsonrpc: { const: '2.0' }, ...members }, ['jsonrpc', ...required]) })
  const id = { type: ['string', 'integer'] }
  const asked = { name: method, summary, ...frame({ ...(result && { id }), method: { const: method }, params }, ['method']) }
  if (!result) return [[name, asked]]
  const error = object({ code: { type: 'integer' }, message: text, data: {} }, ['code', 'message'])
  return [
    [name, asked],
    [`${name}_result`, { name: `${method} result`, ...frame({ id, result }, ['id', 'result']) }],
    [`${name}_error`, { name: `${method} error`, ...frame({ id, error }, ['id', 'error']) }]
  ]
}

const channel = { $ref: '#/channels/socket' }
const referTo = (name: string) => ({ $ref: `#/channels/socket/messages/${name}` })

function operationOf (name: string, { action, summary, result }: Exchange): object {
  return {
    action,
    channel,
    summary,
    messages: [referTo(name)],
    ...(result && { reply: { channel, messages: [referTo(`${name}_result`), referTo(`${name}_error`)] } })
  }
}
