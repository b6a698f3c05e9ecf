/** How a transport puts a payload on its wire. */
export type Form = (payload: string | Uint8Array) => Buffer

/** What leaves in one write: a frame, or several in their order. */
export abstract class Outgoing {
  /** Bytes of the payloads. */
  abstract readonly size: number
  #next: Frames | undefined
  #form: Form | undefined
  #wire: Buffer | undefined
  #others: Map<Form, Buffer> | undefined

  abstract payloads (): Array<string | Uint8Array>
  protected abstract put (form: Form): Buffer

  /** Made once for each form, however many sockets it goes to; most have one form only. */
  wire (form: Form): Buffer {
    if (this.#form === form) return this.#wire!
    if (this.#form) return this.#otherwise(form)
    this.#form = form
    return this.#wire = this.put(form)
  }

  /** The same for all who have the same before it: what is joined for one is joined for all. */
  followedBy (frame: Frame): Frames {
    if (this.#next?.last !== frame) this.#next = new Frames(this, frame)
    return this.#next
  }

  #otherwise (form: Form): Buffer {
    this.#others ??= new Map()
    let wire = this.#others.get(form)
    if (!wire) this.#others.set(form, wire = this.put(form))
    return wire
  }
}

/** A message encoded once. */
export class Frame extends Outgoing {
  readonly payload: string | Uint8Array
  readonly size: number

  constructor (payload: string | Uint8Array) {
    super()
    this.payload = payload
    this.size = Buffer.byteLength(payload)
  }

  override payloads (): Array<string | Uint8Array> {
    return [this.payload]
  }

  protected override put (form: Form): Buffer {
    return form(this.payload)
  }
}

/** Frames that leave together. */
export class Frames extends Outgoing {
  readonly last: Frame
  readonly size: number
  readonly #before: Outgoing

  constructor (before: Outgoing, last: Frame) {
    super()
    this.last = last
    this.size = before.size + last.size
    this.#before = before
  }

  override payloads (): Array<string | Uint8Array> {
    return this.#all().map(({ payload }) => payload)
  }

  protected override put (form: Form): Buffer {
    return Buffer.concat(this.#all().map(frame => frame.wire(form)))
  }

  #all (): Frame[] {
    const frames = [this.last]
    let rest = this.#before
    while (rest instanceof Frames) {
      frames.push(rest.last)
      rest = rest.#before
    }
    return [rest as Frame, ...frames.toReversed()]
  }
}
