/** How a transport puts a payload on its wire. */
export type Form = (payload: string | Uint8Array) => Buffer

/** What leaves in one write: a frame, or several in their order. */
export abstract class Outgoing {
  /** Bytes of the payloads. */
  abstract readonly size: number
  #next: Frames | undefined

  abstract wire (form: Form): Buffer
  abstract payloads (): Array<string | Uint8Array>

  /** The same for all who have the same before it: what is joined for one is joined for all. */
  followedBy (frame: Frame): Frames {
    if (this.#next?.last !== frame) this.#next = new Frames(this, frame)
    return this.#next
  }
}

/** A message encoded once; however many sockets it goes to, its bytes on the wire are made once. */
export class Frame extends Outgoing {
  readonly payload: string | Uint8Array
  readonly size: number
  #wire: Buffer | undefined

  constructor (payload: string | Uint8Array) {
    super()
    this.payload = payload
    this.size = Buffer.byteLength(payload)
  }

  /** All who share a frame speak one codec, and so go over one transport. */
  override wire (form: Form): Buffer {
    this.#wire ??= form(this.payload)
    return this.#wire
  }

  override payloads (): Array<string | Uint8Array> {
    return [this.payload]
  }
}

/** Frames that leave together. */
export class Frames extends Outgoing {
  readonly last: Frame
  readonly size: number
  readonly #before: Outgoing
  #wire: Buffer | undefined

  constructor (before: Outgoing, last: Frame) {
    super()
    this.last = last
    this.size = before.size + last.size
    this.#before = before
  }

  override wire (form: Form): Buffer {
    this.#wire ??= Buffer.concat(this.#all().map(frame => frame.wire(form)))
    return this.#wire
  }

  override payloads (): Array<string | Uint8Array> {
    return this.#all().map(({ payload }) => payload)
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
