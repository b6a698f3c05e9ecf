import { frameOf, opcodes } from '../test/campaigns/raw.ts'

/** The device protocol of a candidate, as far as the load generator needs it. */
export interface Dialect {
  /** The path of the upgrade request. */
  path (deviceId: string): string
  /** The WebSocket subprotocol that a device offers. */
  protocol?: string
  /** The first message of a device. */
  firstMessage? (deviceId: string, topic: string | undefined): string | Buffer | undefined
  /** The number of frames a device receives before it counts as connected. */
  welcomes (topic: string | undefined): number
  /** A call of the method that echoes its params. */
  echo? (data: string): string
  /** The answer of a device to a message; undefined where none is due. */
  answer? (text: string): string | undefined
  /** A broadcast over a WebSocket. Without it, a broadcast is a POST. */
  publish? (data: string, topic: string | undefined): Buffer
  /** Size of a message on the wire, needed where one frame may hold several messages. */
  messageBytes? (data: string, topic: string | undefined): number
}

const BROADCAST_TOPIC = 'all'
const FRAME_BYTES = 32_768

const devices: Dialect = {
  path: id => `/ws?deviceId=${id}`,
  firstMessage: (_id, topic) => topic && JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'subscribe', params: { topics: [topic] } }),
  welcomes: topic => topic === undefined ? 1 : 2,
  echo: data => `{"jsonrpc":"2.0","id":7,"method":"echo","params":${data}}`,
  answer (text) {
    const { id, method, params } = JSON.parse(text)
    return id === undefined ? undefined : JSON.stringify({ jsonrpc: '2.0', id, result: method === 'message' ? null : params })
  }
}

const forty: Dialect = {
  path: id => `/ws?deviceId=${id}`,
  firstMessage: (_id, topic) => topic && JSON.stringify({ type: 'subscribe', topic }),
  welcomes: topic => topic === undefined ? 0 : 1,
  echo: data => `{"type":"echo","id":7,"params":${data}}`,
  answer (text) {
    const { type, id, params } = JSON.parse(text)
    if (type === 'letter') return JSON.stringify({ type: 'ack', id })
    return type === 'call' ? JSON.stringify({ type: 'answer', id, result: params }) : undefined
  }
}

/** Plain WebSocket messages. */
const bare: Dialect = {
  path: id => `/ws?deviceId=${id}`,
  welcomes: () => 0
}

/** Engine.IO 4 and Socket.IO 5: an open packet, then the connect packet of a namespace. `42` is an event; a number after it asks for an acknowledgement. */
const socketio: Dialect = {
  path: () => '/socket.io/?EIO=4&transport=websocket',
  firstMessage: (deviceId, topic) => `40${JSON.stringify({ deviceId, topic })}`,
  welcomes: () => 2,
  echo: data => `427["echo",${data}]`,
  answer (text) {
    const [, id, params] = text.match(/^42(\d+)\["call",(.*)\]$/) ?? []
    return id && `43${id}[${params}]`
  }
}

const nats: Dialect = {
  path: () => '/',
  firstMessage: (_id, topic = BROADCAST_TOPIC) => `CONNECT {"verbose":false,"pedantic":false}\r\nSUB ${topic} 1\r\nPING\r\n`,
  welcomes: () => 2,
  publish: (data, topic = BROADCAST_TOPIC) => framed(opcodes.text, Buffer.from(`PUB ${topic} ${data.length}\r\n${data}\r\n`)),
  messageBytes: (data, topic = BROADCAST_TOPIC) => `MSG ${topic} 1 ${data.length}\r\n${data}\r\n`.length
}

/** MQTT 3.1.1 with QoS 0. */
const mqtt: Dialect = {
  path: () => '/mqtt',
  protocol: 'mqtt',
  firstMessage (deviceId, topic = BROADCAST_TOPIC) {
    const connect = packet(0x10, Buffer.concat([lengthPrefixed('MQTT'), Buffer.from([4, 2, 0, 0]), lengthPrefixed(deviceId)]))
    return Buffer.concat([connect, packet(0x82, Buffer.concat([Buffer.from([0, 1]), lengthPrefixed(topic), Buffer.from([0])]))])
  },
  welcomes: () => 2,
  publish: (data, topic = BROADCAST_TOPIC) => framed(opcodes.binary, packet(0x30, Buffer.concat([lengthPrefixed(topic), Buffer.from(data)])))
}

/** Splits bytes into frames of at most `FRAME_BYTES`. */
function framed (opcode: number, bytes: Buffer): Buffer {
  const frames = []
  for (let at = 0; at < bytes.length; at += FRAME_BYTES) frames.push(frameOf(opcode, bytes.subarray(at, at + FRAME_BYTES)))
  return Buffer.concat(frames)
}

function packet (type: number, body: Buffer): Buffer {
  const length = []
  for (let left = body.length; length.length === 0 || left > 0; left >>= 7) length.push((left & 0x7f) | (left > 0x7f ? 0x80 : 0))
  return Buffer.concat([Buffer.from([type, ...length]), body])
}

function lengthPrefixed (text: string): Buffer {
  const length = Buffer.alloc(2)
  length.writeUInt16BE(Buffer.byteLength(text))
  return Buffer.concat([length, Buffer.from(text)])
}

/** Plain WebSocket messages: one channel for all devices, or one for each. */
const nchan: Dialect = {
  path: () => '/all',
  welcomes: () => 0
}
const nchanEach: Dialect = { ...nchan, path: id => `/ws/${id}` }

export const dialects = { devices, forty, bare, socketio, nats, mqtt, nchan, nchanEach }

export type DialectName = keyof typeof dialects
