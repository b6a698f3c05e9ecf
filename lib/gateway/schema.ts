import AjvCompiler from '@fastify/ajv-compiler'
import { FormatRegistry, Kind, type TSchema } from '@sinclair/typebox'
import { TypeCompiler, ValueErrorType, type ValueError } from '@sinclair/typebox/compiler'
import type { ParamsFlaw } from '../protocol/errors.ts'
import { isThenable } from '../protocol/peer.ts'
import type { Schema, StandardSchema } from '../protocol/schema.ts'

/** Where a value does not fit its schema, and why. */
export interface SchemaFlaw {
  /** A JSON pointer. */
  path: string
  message: string
  kind: ParamsFlaw
}

/** Returns the value to use, or a promise of it; throws, or rejects, if the value does not fit. */
export type Check = (value: unknown) => unknown

/** Makes the error for a value that does not fit. */
type ErrorOf = (flaw: SchemaFlaw) => Error

/** Compiles a schema. Throws if that is not possible; `subject` says whose schema it is. */
export function compile (subject: string, schema: Schema, errorOf: ErrorOf): Check {
  try {
    return compilerOf(schema)(schema as never, errorOf)
  } catch (error) {
    throw new TypeError(`${subject} cannot be compiled: ${(error as Error).message}`, { cause: error })
  }
}

function compilerOf (schema: Schema): (schema: never, errorOf: ErrorOf) => Check {
  if (isStandard(schema)) return compileStandard
  if (typeof schema !== 'object' || schema === null || Array.isArray(schema)) throw new TypeError('it is not a schema')
  return Kind in schema ? compileTypeBox : compileJsonSchema
}

/** ArkType's schemas are functions. */
export function isStandard (schema: unknown): schema is StandardSchema {
  return (typeof schema === 'object' || typeof schema === 'function') && schema !== null && '~standard' in schema
}

function compileStandard (schema: StandardSchema, errorOf: ErrorOf): Check {
  const { validate } = schema['~standard']
  const accept = (outcome: unknown) => {
    const { issues, value } = outcome as { issues?: ReadonlyArray<Issue>, value?: unknown }
    if (!issues) return value
    const [{ path = [], message }] = issues as [Issue]
    throw errorOf({ path: Array.from(path, step => `/${String(typeof step === 'object' ? step.key : step)}`).join(''), message, kind: 'value' })
  }
  return value => {
    const outcome = validate(value)
    return isThenable(outcome) ? Promise.resolve(outcome).then(accept) : accept(outcome)
  }
}

interface Issue {
  message: string
  path?: ReadonlyArray<PropertyKey | { key: PropertyKey }> | undefined
}

function compileTypeBox (schema: TSchema, errorOf: ErrorOf): Check {
  checkFormats(schema)
  const check = TypeCompiler.Compile(schema)
  return value => {
    if (check.Check(value)) return value
    const { type, path, message } = check.Errors(value).First() as ValueError
    throw errorOf({ path, message, kind: occurrenceErrors.has(type) ? 'occurrence' : typeErrors.has(type) ? 'type' : 'value' })
  }
}

const occurrenceErrors = new Set([ValueErrorType.ObjectRequiredProperty, ValueErrorType.ArrayMinItems, ValueErrorType.ArrayMaxItems])
const typeErrors = new Set([
  ValueErrorType.Array, ValueErrorType.Boolean, ValueErrorType.Integer, ValueErrorType.Null, ValueErrorType.Number, ValueErrorType.Object, ValueErrorType.String
])

/** TypeBox compiles a format that nobody has registered, and then no value fits. */
function checkFormats (schema: unknown): void {
  if (typeof schema !== 'object' || schema === null) return
  const { format } = schema as TSchema
  if (Kind in schema && typeof format === 'string' && !FormatRegistry.Has(format)) {
    throw new TypeError(`unknown format "${format}"; add it with FormatRegistry.Set() of @sinclair/typebox`)
  }
  for (const member of Object.values(schema)) checkFormats(member)
}

/** The values are checked, not changed. Console output of Ajv about its stricter rules is no use here. */
const ajvOptions = { coerceTypes: false, useDefaults: false, removeAdditional: false, strictTypes: false, strictTuples: false, addUsedSchema: true } as const

function compileJsonSchema (schema: object, errorOf: ErrorOf): Check {
  const compiler = AjvCompiler()({}, { customOptions: ajvOptions })
  const validate = compiler({ schema, method: '', url: '', httpPart: 'body' }) as AjvFunction
  if ('$async' in schema) throw new TypeError('asynchronous JSON Schema is not supported')
  return value => {
    if (validate(value)) return value
    const { instancePath, message, keyword } = validate.errors![0]!
    throw errorOf({ path: instancePath, message, kind: occurrenceKeywords.has(keyword) ? 'occurrence' : keyword === 'type' ? 'type' : 'value' })
  }
}

interface AjvFunction {
  (value: unknown): boolean
  errors?: Array<{ instancePath: string, message: string, keyword: string }> | null
}

const occurrenceKeywords = new Set(['required', 'minItems', 'maxItems'])
