import { ClassicLevel } from 'classic-level'

/** Puts something between every database in this process and its disk: it decides what becomes of each write. */
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
