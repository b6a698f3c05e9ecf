import type { CallArguments, CommandName, CommandOf, Contract, MethodName, MethodOf, PublicationOf, ReceivedOf, ResultOf, SubscriptionOf, TopicOf } from '../protocol/contract.ts'
import type { InputOf, OutputOf } from '../protocol/schema.ts'
import type { CallOptions } from './options.ts'
import type { Received } from './received.ts'

export type CommandHandler<C extends Contract, Name extends CommandName<C>> =
  (params: OutputOf<CommandOf<C, Name>['params']>, context: { signal: AbortSignal }) => InputOf<CommandOf<C, Name>['result']> | Promise<InputOf<CommandOf<C, Name>['result']>>

// `NoInfer`: from the schemas the compiler would infer the name of the method, without end
interface TypedMembers<Client, C extends Contract> {
  /** Every server answers these. */
  call (method: 'message' | 'ping', params?: { data?: unknown }, options?: CallOptions): Promise<any>
  call<Name extends MethodName<C>> (method: Name, ...rest: NoInfer<CallArguments<MethodOf<C, Name>, CallOptions>>): Promise<NoInfer<ResultOf<MethodOf<C, Name>>>>
  handle<Name extends CommandName<C>> (method: Name, handler: NoInfer<CommandHandler<C, Name>>): Typed<Client, C>
  subscribe<const Filter extends string> (filter: Filter & SubscriptionOf<C, Filter>, listener: (message: Received<ReceivedOf<C, Filter>>) => unknown): () => void
  publish<const Topic extends string> (topic: Topic & TopicOf<C, Topic>, data: NoInfer<PublicationOf<C, Topic>>, options?: CallOptions): Promise<void>
}

/** A client with the types of a contract. */
export type Typed<Client, C extends Contract> = Omit<Client, keyof TypedMembers<unknown, Contract>> & TypedMembers<Client, C>
