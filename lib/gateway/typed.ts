import type { PublishResult } from '../cluster/backplane.ts'
import type { BulkMessage, BulkOptions } from '../messaging/bulk.ts'
import type { SendOptions, SendResult } from '../messaging/dispatcher.ts'
import type { CallArguments, CommandName, CommandOf, Contract, MessageOf, MethodName, MethodOf, PublicationOf, ResultOf, TopicOf } from '../protocol/contract.ts'
import type { Failure } from '../protocol/errors.ts'
import type { CallOptions } from '../protocol/peer.ts'
import type { RequestLike } from '../protocol/request-context.ts'
import type { Handler } from './methods.ts'

// `NoInfer`: from the schemas the compiler would infer the name of the method, without end
interface TypedMembers<Server, C extends Contract> {
  call<Name extends CommandName<C>> (deviceId: string, method: Name, ...rest: NoInfer<CallArguments<CommandOf<C, Name>, Omit<CallOptions, 'id'>>>): Promise<NoInfer<ResultOf<CommandOf<C, Name>>>>
  handle<Name extends MethodName<C>> (method: Name, handler: NoInfer<Handler<MethodOf<C, Name>>>): Typed<Server, C>
  send (deviceId: string, data: MessageOf<C>, options?: SendOptions): Promise<SendResult>
  broadcast (data: MessageOf<C>, options?: { topic?: undefined, request?: RequestLike | undefined }): Promise<PublishResult & { id: string }>
  broadcast<const Topic extends string> (data: NoInfer<PublicationOf<C, Topic>>, options: { topic: Topic & TopicOf<C, Topic>, request?: RequestLike | undefined }): Promise<PublishResult & { id: string }>
  sendMany (
    messages: Iterable<TypedBulkMessage<C> | Failure> | AsyncIterable<TypedBulkMessage<C> | Failure>,
    options?: BulkOptions
  ): AsyncGenerator<SendResult | Failure>
}

interface TypedBulkMessage<C extends Contract> extends BulkMessage {
  data: MessageOf<C>
}

type MemberName = keyof TypedMembers<unknown, Contract>

/** `app.devices`, or a worker, with the types of a contract. */
export type Typed<Server, C extends Contract> = Omit<Server, MemberName | 'as'> & Pick<TypedMembers<Server, C>, MemberName & keyof Server>
