/** The pattern of a device id. URLs cannot have `.` and `..` as a path segment, so neither is an id. */
export const DEVICE_ID = '^(?!\\.{1,2}$)[A-Za-z0-9._:@+=~-]{1,128}$'

const pattern = new RegExp(DEVICE_ID)

export function isDeviceId (id: unknown): id is string {
  return typeof id === 'string' && pattern.test(id)
}
