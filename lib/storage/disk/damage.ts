/** What is not as it was written: a record by its key, or a file by its name. */
export interface Damage {
  key: string
  reason: string
}
