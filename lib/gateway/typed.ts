import type { PublishResult } from '../cluster/backplane.ts'
import type { BulkMessage, BulkOptions } from '../messaging/bulk.ts'
import type { SendOptions, SendResult } from '../messaging/dispatcher.ts'
import type { CallArguments, CommandName, CommandOf, Contract, MessageOf, MethodName, MethodOf, PublicationOf, ResultOf, TopicName } from '../protocol/contract.ts'
import type { Failure } from '../protocol/errors.ts'
import type { CallOptions } from '../protocol/peer.ts'
import type { RequestLike } from '../protocol/request-context.ts'
import type { Handler } from './methods.ts'

// `NoInfer`: from the schemas the compiler would infer the name of the method, without end
interface TypedMembers<C extends Contract> {
  call<Name extends CommandName<C>> (deviceId: string, method: Name, ...rest: NoInfer<CallArguments<CommandOf<C, Name>, Omit<CallOptions, 'id'>>>): Promise<NoInfer<ResultOf<CommandOf<C, Name>>>>
  handle<Name extends MethodName<C>> (method: Name, handler: NoInfer<Handler<MethodOf<C, Name>>>): this
  send (deviceId: string, data: MessageOf<C>, options?: SendOptions): Promise<SendResult>
  broadcast (data: MessageOf<C>, options?: { topic?: undefined, request?: RequestLike | undefined }): Promise<PublishResult & { id: string }>
  broadcast<Topic extends TopicName<C>> (data: PublicationOf<C, Topic>, options: { topic: Topic, request?: RequestLike | undefined }): Promise<PublishResult & { id: string }>
  sendMany (
    messages: Iterable<TypedBulkMessage<C> | Failure> | AsyncIterable<TypedBulkMessage<C> | Failure>,
    options?: BulkOptions
  ): AsyncGenerator<SendResult | Failure>
}

interface TypedBulkMessage<C extends Contract> extends BulkMessage {
  data: MessageOf<C>
}

/** `app.devices`, or a worker, with the types of a contract. */
export type Typed<Server, C extends Contract> = Omit<Server, keyof TypedMembers<C> | 'as'> & Pick<TypedMembers<C>, keyof TypedMembers<C> & keyof Server>
