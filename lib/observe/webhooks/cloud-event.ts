import type { DeviceEvent } from '../device-event.ts'

/** Digits of the largest generation, so that generations sort as text. */
const GENERATION_DIGITS = 16

/** Encodes an event as CloudEvents 1.0 in JSON. */
export function encodeCloudEvent ({ id, type, at, node, deviceId, generation, data }: DeviceEvent): string {
  return JSON.stringify({
    specversion: '1.0',
    id,
    source: `/nodes/${node}`,
    type: `fastify-devices.${type}`,
    subject: deviceId,
    time: new Date(at).toISOString(),
    datacontenttype: 'application/json',
    // text, because integers of CloudEvents have 32 bits
    ...(generation !== undefined && { generation: String(generation).padStart(GENERATION_DIGITS, '0') }),
    data
  })
}
