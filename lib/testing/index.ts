import type { EventEmitter } from 'node:events'
import { Server as TlsServer } from 'node:tls'
import { InjectedDevice } from './injected-device.ts'
import type { CommandHandler, Typed } from '../client/typed.ts'
import type { CommandName, Contract } from '../protocol/contract.ts'
import { injectSettings, type InjectOptions } from './options.ts'

export { ConnectionError } from './connection-error.ts'
export type { InjectedDevice, Welcome } from './injected-device.ts'
export type { InjectedMessage, InjectOptions } from './options.ts'
export { Failure, Refusal } from '../protocol/errors.ts'

type TypedOptions<C extends Contract> = Omit<InjectOptions, 'contract' | 'handlers'> & { contract?: C, handlers?: { [Name in CommandName<C>]?: CommandHandler<C, Name> } }

type TypedMember = 'call' | 'handle' | 'publish'

/** An injected device with the types of a contract. */
export type TypedDevice<C extends Contract> = Omit<InjectedDevice, TypedMember> & Pick<Typed<InjectedDevice, C>, TypedMember>

/** As much of a Fastify application as an injection needs. */
interface InjectableApp {
  ready (): PromiseLike<unknown>
  readonly server: EventEmitter
}

/**
 * Connects a device within this process, without a port, and resolves once it is welcomed. It takes the way of every device: hooks, protected mode,
 * `authenticate`, codec. Rejects with a `ConnectionError` if the device is refused. Call `app.close()` to end all devices.
 */
export async function injectDevice (app: InjectableApp, options: Omit<InjectOptions, 'contract'>): Promise<InjectedDevice>
/** With a contract the device has its types. */
export async function injectDevice<C extends Contract> (app: InjectableApp, options: TypedOptions<C>): Promise<TypedDevice<C>>
export async function injectDevice (app: InjectableApp, options: any): Promise<unknown> {
  const settings = injectSettings(options)
  await app.ready()
  const { server } = app
  const device = new InjectedDevice(settings, end => {
    Object.assign(end, { alpnProtocol: 'http/1.1', server }) // an HTTP/2 server with `allowHTTP1` reads them
    server.emit(server instanceof TlsServer ? 'secureConnection' : 'connection', end)
  })
  return await device.welcomed
}
