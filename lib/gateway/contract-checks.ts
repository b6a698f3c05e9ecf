import type { FastifyBaseLogger } from 'fastify'
import type { OutboundChecks } from '../connection/outbound-checks.ts'
import type { Contract, MethodSchemas } from '../protocol/contract.ts'
import { Failure } from '../protocol/errors.ts'
import { checkOptionNames } from '../protocol/option-names.ts'
import { isThenable } from '../protocol/peer.ts'
import type { Schema } from '../protocol/schema.ts'
import { isFilter, Topics, type TopicLimits } from '../protocol/topics.ts'
import { builtins, reservedMethods } from './builtins.ts'
import { compile, type Check, type SchemaFlaw } from './schema.ts'

const contractMembers = { methods: true, commands: true, topics: true, message: true }
const schemaMembers = { params: true, result: true }

interface MethodChecks {
  params: Check | undefined
  result: Check | undefined
}

/** The compiled schemas of a contract for what the server sends. Those of the methods are compiled again for each handler. */
export class ContractChecks implements OutboundChecks {
  readonly #commands = new Map<string, MethodChecks>()
  readonly #topics = new Topics<Check>()
  readonly #message: Check | undefined
  readonly #log: FastifyBaseLogger

  /** Throws if the contract is wrong, and names the part. */
  constructor (contract: Contract, limits: TopicLimits, log: FastifyBaseLogger) {
    this.#log = log
    checkOptionNames('contract', contract, contractMembers)
    const { message } = contract
    for (const [name, schemas] of membersOf(contract, 'methods')) this.#methodChecks(`method "${name}"`, schemas as MethodSchemas, builtins.has(name))
    for (const [name, schemas] of membersOf(contract, 'commands')) this.#commands.set(name, this.#methodChecks(`command "${name}"`, schemas as MethodSchemas, reservedMethods.has(name)))
    for (const [filter, schema] of membersOf(contract, 'topics')) {
      if (!isFilter(filter, limits)) throw new TypeError(`The contract names a topic "${filter}", which is not a valid filter`)
      this.#topics.add(filter, this.#check(`The schema of the topic "${filter}"`, schema as Schema, invalidMessage))
    }
    this.#message = message === undefined ? undefined : this.#check('The schema "message"', message, invalidMessage)
  }

  declares (method: string): boolean {
    return this.#commands.has(method)
  }

  params (method: string, params: unknown): unknown {
    const check = this.#commands.get(method)?.params
    return check ? check(params) : params
  }

  result (method: string, result: unknown): unknown {
    const check = this.#commands.get(method)?.result
    return check ? check(result) : result
  }

  message (data: unknown): unknown {
    return this.#message ? this.#message(data) : data
  }

  /** Every filter that matches must accept what was given. If there are several, that is also what is sent: they may transform it in different ways. */
  publication (topic: string, data: unknown): unknown {
    const checks = this.#topics.match(topic)
    let checked = data
    for (const check of checks) checked = check(data)
    return checks.size > 1 ? data : checked
  }

  #methodChecks (subject: string, schemas: MethodSchemas, isReserved: boolean): MethodChecks {
    if (isReserved) throw new TypeError(`The contract names the ${subject}, which is built in`)
    if (!isPlainObject(schemas)) throw new TypeError(`The ${subject} of the contract is not an object of schemas`)
    checkOptionNames(`The ${subject} of the contract`, schemas, schemaMembers)
    const { params, result } = schemas
    return {
      params: params === undefined ? undefined : this.#check(`The schema "params" of the ${subject}`, params, flaw => invalid('params', flaw)),
      result: result === undefined ? undefined : this.#check(`The schema "result" of the ${subject}`, result, ({ path, message }) =>
        new Failure('answer-invalid', { message: `The result does not fit the contract: result${path}: ${message}` }))
    }
  }

  /** A check that throws nothing but a `Failure`. */
  #check (subject: string, schema: Schema, errorOf: (flaw: SchemaFlaw) => Failure): Check {
    const check = compile(subject, schema, errorOf)
    return value => {
      try {
        return synchronous(check(value))
      } catch (error) {
        if (error instanceof Failure) throw error
        this.#log.error({ err: error }, `${subject} failed`)
        throw new Failure('internal')
      }
    }
  }
}

/** Messages would overtake each other while an asynchronous schema decides. */
function synchronous (checked: unknown): unknown {
  if (!isThenable(checked)) return checked
  checked.then(undefined, () => {})
  throw new TypeError('The schema is asynchronous, which a contract cannot be for what the server sends')
}

function membersOf (contract: Contract, name: 'methods' | 'commands' | 'topics'): Array<[name: string, member: unknown]> {
  const { [name]: members = {} } = contract
  if (!isPlainObject(members)) throw new TypeError(`The member "${name}" of the contract is not an object`)
  return Object.entries(members)
}

function isPlainObject (value: unknown): value is object {
  return Object.prototype.toString.call(value) === '[object Object]'
}

function invalidMessage (flaw: SchemaFlaw): Failure {
  return invalid('message', flaw)
}

function invalid (subject: string, { path, message, kind }: SchemaFlaw): Failure {
  return new Failure('bad-params', { message: `${subject}${path}: ${message}`, flaw: kind })
}
