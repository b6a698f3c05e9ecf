import type { OutboundChecks } from '../connection/outbound-checks.ts'
import type { Contract, MethodSchemas } from '../protocol/contract.ts'
import { Failure } from '../protocol/errors.ts'
import { checkOptionNames } from '../protocol/option-names.ts'
import { isThenable } from '../protocol/peer.ts'
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

  /** Throws if the contract is wrong, and names the member. */
  constructor (contract: Contract, limits: TopicLimits) {
    checkOptionNames('contract', contract, contractMembers)
    const { methods = {}, commands = {}, topics = {}, message } = contract
    for (const [name, schemas] of Object.entries(methods)) compiledMethod(`method "${name}"`, schemas, builtins.has(name))
    for (const [name, schemas] of Object.entries(commands)) this.#commands.set(name, compiledMethod(`command "${name}"`, schemas, reservedMethods.has(name)))
    for (const [filter, schema] of Object.entries(topics)) {
      if (!isFilter(filter, limits)) throw new TypeError(`The contract names a topic "${filter}", which is not a valid filter`)
      this.#topics.add(filter, compile(`The schema of the topic "${filter}"`, schema, invalidMessage))
    }
    this.#message = message && compile('The schema "message"', message, invalidMessage)
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

  /** Every filter that matches has a say, one after the other. */
  publication (topic: string, data: unknown): unknown {
    let checked = data
    for (const check of this.#topics.match(topic)) checked = isThenable(checked) ? Promise.resolve(checked).then(check) : check(checked)
    return checked
  }
}

function compiledMethod (subject: string, schemas: MethodSchemas, isReserved: boolean): MethodChecks {
  if (isReserved) throw new TypeError(`The contract names the ${subject}, which is built in`)
  checkOptionNames(`The ${subject} of the contract`, schemas, schemaMembers)
  const { params, result } = schemas
  return {
    params: params && compile(`The schema "params" of the ${subject}`, params, flaw => invalid('params', flaw)),
    result: result && compile(`The schema "result" of the ${subject}`, result, ({ path, message }) =>
      new Failure('answer-invalid', { message: `The result does not fit the contract: result${path}: ${message}` }))
  }
}

function invalidMessage (flaw: SchemaFlaw): Failure {
  return invalid('message', flaw)
}

function invalid (subject: string, { path, message, kind }: SchemaFlaw): Failure {
  return new Failure('bad-params', { message: `${subject}${path}: ${message}`, flaw: kind })
}
