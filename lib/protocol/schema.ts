import type { Static, TSchema } from '@sinclair/typebox'
/** @ts-ignore: undefined without the package, and then nothing has its types */
import type { Static as StaticOfTypeBox1 } from 'typebox'

/** A schema of Zod, Valibot, ArkType or any other library with this interface: https://standardschema.dev */
export interface StandardSchema<Input = unknown, Output = Input> {
  readonly '~standard': {
    readonly version: 1
    readonly vendor: string
    readonly validate: (value: unknown) => unknown
    /** https://standardschema.dev/json-schema */
    readonly jsonSchema?: { readonly [side in 'input' | 'output']: (options: { target: string }) => Record<string, unknown> } | undefined
    readonly types?: { readonly input: Input, readonly output: Output } | undefined
  }
}

/** TypeBox (`@sinclair/typebox` or `typebox`), a Standard Schema, or plain JSON Schema. */
export type Schema = object

/** The type of a value that a schema accepts; `unknown` for plain JSON Schema. */
export type InputOf<S> = S extends StandardSchema<infer Input, any> ? Input : TypeOf<S>

/** The type of a value as a schema gives it on: a Standard Schema may transform it. */
export type OutputOf<S> = S extends StandardSchema<any, infer Output> ? Output : TypeOf<S>

type TypeOf<S> = S extends TSchema ? Static<S> : S extends { '~kind': string } ? StaticOfTypeBox1<S> : unknown
