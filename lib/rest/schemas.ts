import { Type, type TInteger } from '@sinclair/typebox'
import type { SendResult } from '../messaging/dispatcher.ts'
import { DEVICE_ID } from '../protocol/device-id.ts'

export const DeviceParams = Type.Object({ id: Type.String({ description: 'Device id', pattern: DEVICE_ID }) })

export const MessageParams = Type.Composite([DeviceParams, Type.Object({ messageId: Type.String() })])

const statuses: Array<SendResult['status']> = ['sent', 'queued', 'delivered', 'expired', 'cancelled', 'replaced', 'refused', 'dead-lettered', 'damaged']

export const Receipt = Type.Object({
  id: Type.String({ description: 'Message id' }),
  status: Type.Unsafe<SendResult['status']>({ type: 'string', enum: statuses })
})

export const FullReceipt = Type.Composite([Receipt, Type.Object({
  at: Type.Integer({ description: 'When the status was reached; milliseconds since 1970' }),
  expiresAt: Type.Integer(),
  size: Type.Integer({ description: 'Bytes' }),
  collapse: Type.Optional(Type.String()),
  device: Type.Optional(Type.Unknown({ description: 'The error of the device, if it refused the message' }))
})])

export const Topics = Type.Object({ topics: Type.Array(Type.String()) })

export const Seconds = (description: string, maximum: number) => Type.Number({ minimum: 0, maximum: maximum / 1_000, description })

/** REST uses seconds; the rest of the code uses milliseconds. */
export function milliseconds (seconds: number | undefined): number | undefined {
  return seconds === undefined ? undefined : Math.round(seconds * 1_000)
}

/** A caller may leave it out. The validator fills in the default, so the type has it always. */
export const Limit = Type.Optional(Type.Integer({ minimum: 1, maximum: 1_000, default: 100, description: 'Maximum number of entries on a page' })) as unknown as TInteger
