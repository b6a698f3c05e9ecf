import type { InputOf, OutputOf, Schema } from './schema.ts'

/** The schemas of a method. */
export interface MethodSchemas {
  params?: Schema
  result?: Schema
}

/** What devices and the server may say to each other. Whatever a contract does not name is not checked. */
export interface Contract {
  /** Methods that devices call. */
  methods?: Record<string, MethodSchemas>
  /** Methods of the devices, which the server calls. */
  commands?: Record<string, MethodSchemas>
  /** What is published, by topic filter. */
  topics?: Record<string, Schema>
  /** Messages to devices, except those that are published to a topic. */
  message?: Schema
}

/** Returns a contract as it is, with its type. */
export function contract<const C extends Contract> (contract: C): C {
  return contract
}

type Members<T> = T extends object ? T : Record<never, never>

type SchemasOf<T> = T extends MethodSchemas ? T : never

export type MethodName<C extends Contract> = keyof Members<C['methods']> & string
export type MethodOf<C extends Contract, Name extends MethodName<C>> = SchemasOf<Members<C['methods']>[Name]>

export type CommandName<C extends Contract> = keyof Members<C['commands']> & string
export type CommandOf<C extends Contract, Name extends CommandName<C>> = SchemasOf<Members<C['commands']>[Name]>

/** The arguments of a call after the name of the method. */
export type CallArguments<S extends MethodSchemas, Options> =
  S extends { params: Schema } ? [params: InputOf<S['params']>, options?: Options] : [params?: unknown, options?: Options]

export type ResultOf<S extends MethodSchemas> = OutputOf<S['result']>

/** The topics that a filter matches. */
type TopicsOf<Filter extends string> =
  Filter extends '#' ? string :
  Filter extends `${infer Above}/#` ? TopicsOf<Above> | `${TopicsOf<Above>}/${string}` :
  Filter extends `${infer First}/${infer Rest}` ? `${LevelOf<First>}/${TopicsOf<Rest>}` : LevelOf<Filter>

type LevelOf<Level extends string> = Level extends '+' ? string : Level

type FilterOf<C extends Contract> = keyof Members<C['topics']> & string

export type TopicName<C extends Contract> = TopicsOf<FilterOf<C>>

/** A filter of the contract, or a topic that one of them matches. */
export type SubscriptionName<C extends Contract> = FilterOf<C> | TopicName<C>

/** The schemas of the filters that match a topic. */
type SchemaOfTopic<C extends Contract, Topic extends string> = { [F in FilterOf<C>]: Topic extends TopicsOf<F> ? Members<C['topics']>[F] : never }[FilterOf<C>]

export type PublicationOf<C extends Contract, Topic extends string> = InputOf<SchemaOfTopic<C, Topic>>

/** What a device receives that subscribes to a filter. */
export type ReceivedOf<C extends Contract, Filter extends string> =
  Filter extends FilterOf<C> ? OutputOf<Members<C['topics']>[Filter]> : OutputOf<SchemaOfTopic<C, Filter>>

export type MessageOf<C extends Contract> = InputOf<C['message']>
