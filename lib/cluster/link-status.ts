import type { Failure } from '../protocol/errors.ts'

/** Whether the server of an engine can be reached, and who is told of it. While it cannot, requests fail at once. */
export class LinkStatus {
  readonly #changeListeners = new Set<(up: boolean) => void>()
  readonly #troubleListeners = new Set<(error: unknown) => void>()
  /** Reject the requests that are pending when the link goes down. */
  readonly #rejections = new Set<(failure: Failure) => void>()
  #up = false
  /** The message of the last error that was reported once. */
  #lastFailure: string | undefined

  get up (): boolean {
    return this.#up
  }

  onChange (listener: (up: boolean) => void): void {
    this.#changeListeners.add(listener)
  }

  /** Reports errors that no caller receives. */
  onTrouble (listener: (error: unknown) => void): void {
    this.#troubleListeners.add(listener)
  }

  trouble (error: unknown): void {
    for (const listener of this.#troubleListeners) listener(error)
  }

  /** Reports an error of repeated attempts once until the message changes. */
  reportOnce (error: unknown): void {
    const { message } = error as Error
    if (message !== this.#lastFailure) this.trouble(error)
    this.#lastFailure = message
  }

  /** The next error is reported, even if it is the same again. */
  protected forgetFailure (): void {
    this.#lastFailure = undefined
  }

  protected markUp (): void {
    this.#up = true
    this.#tell(true)
  }

  /** Rejects what is pending. */
  protected markDown (failure: () => Failure): void {
    this.#up = false
    for (const reject of this.#rejections) reject(failure())
    this.#tell(false)
  }

  /** For a link that is closed, which is no outage. */
  protected forgetListeners (): void {
    this.#changeListeners.clear()
  }

  /** Rejects when the link goes down. */
  protected whileUp<T> (work: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      this.#rejections.add(reject)
      work.then(resolve, reject).finally(() => this.#rejections.delete(reject))
    })
  }

  #tell (up: boolean): void {
    for (const listener of this.#changeListeners) listener(up)
  }
}
