/** Whether a part of a node can be used. */
export interface Health {
  ok: boolean
  /** Why not, as a short fixed text. */
  reason?: string
}
