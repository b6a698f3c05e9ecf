import { isStandard } from './schema.ts'
import type { Schema } from '../protocol/schema.ts'

type JsonObject = Record<string, unknown>

/** Members whose own members have names that the application has chosen. */
const mapMembers = new Set(['properties', 'patternProperties'])

/** Members that only a reference needs. */
const definitionMembers = new Set(['$id', '$defs', 'definitions', '$schema'])

/**
 * JSON Schema for a document; `{}`, which says nothing, if there is none. `side`: a Standard Schema may transform what it takes. References are replaced by
 * what they refer to, because they are relative to the schema and not to the document; one that leads back to itself becomes `{}`.
 */
export function jsonSchemaOf (schema: Schema | undefined, side: 'input' | 'output'): object {
  const json = isStandard(schema) ? standardJson(schema, side) : schema ?? {}
  return resolved(json, json as JsonObject, []) as object
}

/** The library may have no JSON Schema, or none for this schema. */
function standardJson (schema: { '~standard': { jsonSchema?: any } }, side: 'input' | 'output'): object {
  try {
    return schema['~standard'].jsonSchema[side]({ target: 'draft-07' })
  } catch {
    return {}
  }
}

function resolved (node: unknown, root: JsonObject, path: unknown[]): unknown {
  if (typeof node !== 'object' || node === null || path.includes(node)) return path.includes(node) ? {} : node
  if (Array.isArray(node)) return node.map(item => resolved(item, root, path))
  const { $ref } = node as JsonObject
  if (typeof $ref === 'string') return resolved(targetOf($ref, root), root, [...path, node])
  const next = [...path, node]
  const members = Object.entries(node).filter(([name]) => !definitionMembers.has(name))
  return Object.fromEntries(members.map(([name, member]) => [name, mapMembers.has(name) ? resolvedMap(member, root, next) : resolved(member, root, next)]))
}

/** Without a member `$id`, which @fastify/swagger would take for the id of a schema. */
function resolvedMap (map: object, root: JsonObject, path: unknown[]): object {
  return Object.fromEntries(Object.entries(map).filter(([name]) => name !== '$id').map(([name, member]) => [name, resolved(member, root, path)]))
}

/** What a reference refers to: a JSON pointer, or the `$id` of a part. */
function targetOf (reference: string, root: JsonObject): unknown {
  if (!reference.startsWith('#')) return partWithId(root, reference) ?? {}
  const steps = reference.slice(1).split('/').slice(1).map(step => decodeURIComponent(step).replaceAll('~1', '/').replaceAll('~0', '~'))
  return steps.reduce<any>((part, step) => part?.[step], root) ?? {}
}

function partWithId (node: unknown, id: string): unknown {
  if (typeof node !== 'object' || node === null) return undefined
  if ((node as JsonObject).$id === id) return node
  for (const member of Object.values(node)) {
    const found = partWithId(member, id)
    if (found) return found
  }
  return undefined
}
