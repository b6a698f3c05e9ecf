/** A damaged record, by its key, or file, by its name. */
export interface Damage {
  key: string
  reason: string
}
