import { Type, type TSchema } from '@sinclair/typebox'
import type { FastifySchema, RouteOptions } from 'fastify'
import { reasons, type Reason } from '../protocol/errors.ts'

interface OperationOptions<Responses> {
  /** Names the operation in the OpenAPI document, and in clients generated from it. */
  id: string
  tag: 'devices' | 'messages' | 'calls' | 'topics' | 'events'
  summary: string
  responses: Responses
  /** How the operation can fail, besides what every operation fails with. */
  failures?: readonly Reason[]
  document?: OperationDocument
}

/** What only the OpenAPI document has: nothing is validated or serialized by it. */
interface OperationDocument {
  body?: object
  params?: object
  response?: Record<number, object>
}

/** Any operation can fail with these. */
const commonFailures: readonly Reason[] = ['malformed', 'unauthenticated', 'forbidden', 'foreign-origin', 'protected', 'internal', 'unreachable', 'draining']

/** What the owner of a device may answer. */
export const ownerFailures: readonly Reason[] = ['offline', 'dropped']

/** What a device may answer, or do instead. */
export const answerFailures: readonly Reason[] = [...ownerFailures, 'refused', 'unknown-method', 'bad-params', 'timeout', 'answer-invalid', 'too-fast', 'busy', 'congested']

export const bodyFailures: readonly Reason[] = ['bad-params', 'bad-type', 'too-large']

/** The codes of Fastify, by status. */
const hostCodes: Record<number, readonly string[]> = {
  400: ['FST_ERR_VALIDATION', 'FST_ERR_CTP_INVALID_JSON_BODY', 'FST_ERR_CTP_EMPTY_JSON_BODY', 'FST_ERR_CTP_INVALID_CONTENT_LENGTH'],
  413: ['FST_ERR_CTP_BODY_TOO_LARGE'],
  414: ['FST_ERR_MAX_PARAM_LENGTH'],
  503: ['Service Unavailable']
}

/** The parts of a schema that every operation has. */
export function operation<Responses extends Record<number, object>> ({ id, tag, summary, responses, failures = [], document }: OperationOptions<Responses>) {
  const response = { ...responses, ...failureResponses([...commonFailures, ...failures]), ...document?.response }
  return { operationId: id, tags: [tag], summary, response: { ...responses, '4xx': ErrorBody, '5xx': ErrorBody }, document: { ...document, response } }
}

/** Gives a route the OpenAPI document of its operation. The same routes may be registered again under another prefix, so it is part of the name. */
export function documentRoute (route: RouteOptions, prefix: string): void {
  const { document, operationId, ...schema } = route.schema as FastifySchema & Partial<ReturnType<typeof operation>>
  route.schema = schema
  const described = { ...schema, ...document, operationId: operationId + prefix.replaceAll(/\W+(\w?)/g, '_$1') }
  route.config = { ...route.config, swaggerTransform: ({ url }: { url: string }) => ({ schema: described, url: url.replace('*', ':topic') }) }
}

/** No member is required: the error handler of the host may respond with another shape. */
const ErrorBody = Type.Partial(Type.Object({ statusCode: Type.Integer(), code: Type.String(), error: Type.String(), message: Type.String(), device: Type.Unknown() }), { additionalProperties: true })

function failureResponses (failures: readonly Reason[]): Record<number, TSchema> {
  const responses: Record<number, TSchema> = { 414: failureResponse([], 414) }
  for (const status of new Set(failures.map(reason => reasons[reason].status))) {
    responses[status] = failureResponse([...new Set(failures)].filter(reason => reasons[reason].status === status), status)
  }
  return responses
}

function failureResponse (failures: Reason[], status: number): TSchema {
  const codes = [...failures.map(reason => reasons[reason].code), ...hostCodes[status] ?? []]
  return Type.Partial(Type.Object({
    statusCode: Type.Integer(),
    code: Type.Unsafe<string>({ type: 'string', enum: codes }),
    error: Type.String(),
    message: Type.String(),
    ...(failures.includes('refused') && { device: DeviceError })
  }), { additionalProperties: true, description: failures.map(reason => reasons[reason].message).join('. ') || 'An id in the path is too long' })
}

const DeviceError = Type.Object({
  code: Type.Unsafe<number | string>({ type: ['integer', 'string'] }),
  message: Type.String(),
  data: Type.Optional(Type.Unknown())
}, { description: 'The error that the device answered with' })

/** A body of any content type that the routes take. */
export const messageBody = (json: object, description: string) => ({
  description,
  content: {
    'application/json': { schema: json },
    'text/plain': { schema: Type.String() },
    'application/octet-stream': { schema: binary }
  }
})

export const binary = Type.Unsafe<Uint8Array>({ type: 'string', format: 'binary' })
