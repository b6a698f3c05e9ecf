import AjvCompiler from '@fastify/ajv-compiler'
import SerializerSelector from '@fastify/fast-json-stringify-compiler'
import type { FastifyInstance } from 'fastify'
import type { FastifySerializerCompiler } from 'fastify/types/schema.js'

/** Gives a scope the compilers that Fastify has by default: those of the host, and its Ajv options, are made for its own schemas. */
export function useDefaultCompilers (scope: FastifyInstance): void {
  const serializer = SerializerSelector()({}, {}) as FastifySerializerCompiler<unknown>
  scope.setValidatorCompiler(AjvCompiler()({}, { customOptions: {} }))
  scope.setSerializerCompiler<unknown>(route => /^[45]/.test(route.httpStatus!) ? errorSerializer(serializer(route)) : serializer(route))
}

/** The error handler of the host may respond with anything else than an error. */
function errorSerializer (serialize: (error: unknown) => string): (error: unknown) => string {
  return error => error instanceof Error ? serialize(error) : JSON.stringify(error)
}
