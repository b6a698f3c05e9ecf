import { Type, type TInteger, type TSchema } from '@sinclair/typebox'
import { DEVICE_ID } from '../protocol/device-id.ts'

export const DeviceParams = Type.Object({ id: Type.String({ description: 'Device id', pattern: DEVICE_ID }) })

export const MessageParams = Type.Composite([DeviceParams, Type.Object({ messageId: Type.String() })])

export const Receipt = Type.Object({
  id: Type.String({ description: 'Message id' }),
  status: Type.String({ description: 'sent, queued, delivered, expired, cancelled, replaced, refused or dead-lettered' })
})

export const FullReceipt = Type.Composite([Receipt, Type.Object({
  at: Type.Integer({ description: 'When the status was reached; milliseconds since 1970' }),
  expiresAt: Type.Integer(),
  size: Type.Integer({ description: 'Bytes' }),
  collapse: Type.Optional(Type.String()),
  device: Type.Optional(Type.Unknown({ description: 'The error of the device, if it refused the message' }))
})])

/** No member is required: the error handler of the host may respond with another shape. */
export const ErrorBody = Type.Partial(Type.Object({
  statusCode: Type.Integer(),
  code: Type.String({ description: 'Stable; see the table of errors' }),
  error: Type.String(),
  message: Type.String(),
  device: Type.Unknown({ description: 'The error that the device answered with: code, message, data' })
}), { additionalProperties: true })

export const Topics = Type.Object({ topics: Type.Array(Type.String()) })

export const Seconds = (description: string, maximum: number) => Type.Number({ minimum: 0, maximum: maximum / 1_000, description })

/** REST uses seconds; the rest of the code uses milliseconds. */
export function milliseconds (seconds: number | undefined): number | undefined {
  return seconds === undefined ? undefined : Math.round(seconds * 1_000)
}

/** A caller may leave it out. The validator fills in the default, so the type has it always. */
export const Limit = Type.Optional(Type.Integer({ minimum: 1, maximum: 1_000, default: 100, description: 'Maximum number of entries on a page' })) as unknown as TInteger

/** The parts of a schema that all routes have. */
export const about = (tag: string, summary: string, response: Record<number, TSchema>) => ({
  tags: [tag],
  summary,
  response: { ...response, '4xx': ErrorBody, '5xx': ErrorBody }
})
