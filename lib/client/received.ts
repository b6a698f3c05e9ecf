/** A message of the server, as listeners get it. */
export interface Received<Data = any> {
  id: string
  data: Data
  topic?: string
}
