import { Failure } from '../lib/protocol/errors.ts'

/** Values that a function of an application may wrongly return or throw. */
export const things: Record<string, () => unknown> = {
  undefined: () => undefined,
  null: () => null,
  'a string': () => 'words',
  'an empty string': () => '',
  zero: () => 0,
  'a number': () => 7,
  'not a number': () => NaN,
  'a bigint': () => 7n,
  'a symbol': () => Symbol('anything'),
  'a function': () => () => true,
  false: () => false,
  'an array': () => [true],
  'a circle': () => {
    const circle: Record<string, unknown> = {}
    return Object.assign(circle, { circle })
  },
  'an error': () => new Error('secret'),
  'an error with status 200': () => Object.assign(new Error('secret'), { statusCode: 200 }),
  'an error with status 302': () => Object.assign(new Error('secret'), { statusCode: 302 }),
  'an error with status 503': () => Object.assign(new Error('secret'), { statusCode: 503 }),
  'an error with a status that is none': () => Object.assign(new Error('secret'), { statusCode: 'secret' }),
  'an error whose status throws': () => Object.defineProperty(new Error('secret'), 'statusCode', throwing()),
  'an error whose message throws': () => Object.defineProperty(new Error('secret'), 'message', throwing()),
  'an error with a status whose code throws': () => Object.defineProperty(Object.assign(new Error('secret'), { statusCode: 403 }), 'code', throwing()),
  'an error of which a member throws': () => Object.defineProperty(new Error('secret'), 'detail', throwing()),
  'a frozen error': () => Object.freeze(new Error('secret')),
  'an error without a prototype': () => Object.setPrototypeOf(new Error('secret'), null),
  'a failure of ours': () => new Failure('forbidden'),
  'a failure for a reason that is none': () => new Failure('secret' as 'forbidden'),
  'an object that throws when it is read': () => Object.defineProperties({}, { statusCode: throwing(), message: throwing(), expiresAt: throwing(), code: throwing() }),
  'an object that throws when it is written': () => ({ toJSON () { throw undefined }, toString () { throw undefined } }), // eslint-disable-line
  'an object whose then throws': () => Object.defineProperty({}, 'then', throwing()), // eslint-disable-line
  'a thenable that rejects with nothing': () => thenable((_resolve, reject) => reject(undefined)),
  'a thenable that throws': () => thenable(() => { throw new Error('secret') }),
  'a thenable that settles twice': () => thenable((resolve, reject) => {
    resolve(false)
    reject(new Error('secret'))
    resolve(true)
  }),
  'a frozen object': () => Object.freeze({ expiresAt: 0 }),
  'a proxy that throws at everything': () => new Proxy(() => {}, Object.fromEntries(traps.map(trap => [trap, () => { throw new Error('secret') }]))),
  'a proxy that was revoked': () => {
    const { proxy, revoke } = Proxy.revocable({}, {})
    revoke()
    return proxy
  }
}

/** The ways in which a function returns or throws such a value. */
export const ways: Record<string, (thing: () => unknown) => unknown> = {
  throws: thing => { throw thing() },
  gives: thing => thing(),
  'rejects with': thing => Promise.reject(thing()),
  'resolves with': async thing => thing()
}

const traps = ['get', 'has', 'ownKeys', 'getPrototypeOf', 'getOwnPropertyDescriptor', 'defineProperty', 'set', 'apply', 'isExtensible', 'preventExtensions']

function throwing (): PropertyDescriptor {
  return { enumerable: true, configurable: true, get () { throw new Error('secret') } }
}

type Then = (resolve: (value: unknown) => void, reject: (error: unknown) => void) => void

function thenable (then: Then): object {
  return { then } // eslint-disable-line unicorn/no-thenable
}
