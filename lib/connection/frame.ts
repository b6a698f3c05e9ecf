/** Encodes a payload for the wire of a transport. */
export type Form = (payload: string | Uint8Array) => Buffer

/** The content of one write: a frame, or several in order. */
export abstract class Outgoing {
  /** Total size of the payloads in bytes. */
  abstract readonly size: number
  #next: Frames | undefined
  #form: Form | undefined
  #wire: Buffer | undefined
  #otherWires: Map<Form, Buffer> | undefined

  abstract payloads (): Array<string | Uint8Array>
  protected abstract encode (form: Form): Buffer

  /** The wire bytes, encoded once per form for any number of sockets. Most frames have one form only, so the first needs no map. */
  wire (form: Form): Buffer {
    if (this.#form === form) return this.#wire!
    if (this.#form) return this.#wireOfOther(form)
    this.#form = form
    return this.#wire = this.encode(form)
  }

  /** Appends a frame. All connections that append the same frame share the result, and so its wire bytes. */
  followedBy (frame: Frame): Frames {
    if (this.#next?.last !== frame) this.#next = new Frames(this, frame)
    return this.#next
  }

  #wireOfOther (form: Form): Buffer {
    this.#otherWires ??= new Map()
    let wire = this.#otherWires.get(form)
    if (!wire) this.#otherWires.set(form, wire = this.encode(form))
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

  protected override encode (form: Form): Buffer {
    return form(this.payload)
  }
}

/** Frames that leave in one write. */
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

  protected override encode (form: Form): Buffer {
    return Buffer.concat(this.#all().map(frame => frame.wire(form)))
  }

  #all (): Frame[] {
    const frames = [this.last]
    let before = this.#before
    while (before instanceof Frames) {
      frames.push(before.last)
      before = before.#before
    }
    return [before as Frame, ...frames.toReversed()]
  }
}
