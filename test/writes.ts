import { ClassicLevel } from 'classic-level'

/** Intercepts the writes of every database in this process; `write` decides whether and when each goes to the disk. */
export function interceptWrites (write: (go: () => Promise<void>, db: ClassicLevel) => Promise<void>): { restore (): void } {
  const { batch } = ClassicLevel.prototype
  ClassicLevel.prototype.batch = function (this: ClassicLevel) {
    const made = Reflect.apply(batch, this, []) as ReturnType<ClassicLevel['batch']>
    const go = made.write.bind(made)
    made.write = () => write(() => go({ sync: true }), this)
    return made
  } as never
  return { restore: () => { ClassicLevel.prototype.batch = batch } }
}
