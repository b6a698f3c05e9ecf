import AjvCompiler from '@fastify/ajv-compiler'
import SerializerSelector from '@fastify/fast-json-stringify-compiler'
import type { FastifyInstance } from 'fastify'
import type { FastifySerializerCompiler } from 'fastify/types/schema.js'

/** Gives a scope the compilers that Fastify has by default: those of the host, and its Ajv options, are made for its own schemas. */
export function useDefaultCompilers (scope: FastifyInstance): void {
  scope.setValidatorCompiler(AjvCompiler()({}, { customOptions: {} }))
  scope.setSerializerCompiler(SerializerSelector()({}, {}) as FastifySerializerCompiler<unknown>)
}
