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
  S extends { params: Schema }
    ? undefined extends InputOf<S['params']> ? [params?: InputOf<S['params']>, options?: Options] : [params: InputOf<S['params']>, options?: Options]
    : [params?: unknown, options?: Options]

export type ResultOf<S extends MethodSchemas> = OutputOf<S['result']>

type FilterOf<C extends Contract> = keyof Members<C['topics']> & string

/** `true` if the filter matches the topic. */
type Matches<Filter extends string, Topic extends string> =
  Filter extends '#' ? true :
  Filter extends `${infer First}/${infer Rest}`
    ? Topic extends `${infer Level}/${infer Below}` ? LevelMatches<First, Level> extends true ? Matches<Rest, Below> : false
      : Rest extends '#' ? LevelMatches<First, Topic> : false
    : Topic extends `${string}/${string}` ? false : LevelMatches<Filter, Topic>

type LevelMatches<First extends string, Level extends string> =
  Level extends `${string}${'+' | '#'}${string}` ? false : First extends '+' ? true : Level extends First ? true : false

/** The topic, if a filter of the contract matches it. */
export type TopicOf<C extends Contract, Topic extends string> = true extends Matches<FilterOf<C>, Topic> ? Topic : never

/** A filter of the contract, or a topic that one of them matches. */
export type SubscriptionOf<C extends Contract, Filter extends string> = Filter extends FilterOf<C> ? Filter : TopicOf<C, Filter>

/** What fits the schemas of all filters that match a topic. */
export type PublicationOf<C extends Contract, Topic extends string> =
  { [F in FilterOf<C>]: Matches<F, Topic> extends true ? (data: InputOf<Members<C['topics']>[F]>) => void : never }[FilterOf<C>] extends (data: infer Data) => void ? Data : never

type OutputOfTopic<C extends Contract, Topic extends string> =
  { [F in FilterOf<C>]: Matches<F, Topic> extends true ? OutputOf<Members<C['topics']>[F]> : never }[FilterOf<C>]

/** What a device receives that subscribes to a filter. */
export type ReceivedOf<C extends Contract, Filter extends string> =
  Filter extends FilterOf<C> ? OutputOf<Members<C['topics']>[Filter]> : OutputOfTopic<C, Filter>

export type MessageOf<C extends Contract> = InputOf<C['message']>
