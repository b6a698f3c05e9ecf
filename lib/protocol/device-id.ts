/** What a device id is, as a pattern. Not `.` and `..`: a URL has no names like these. */
export const DEVICE_ID = '^(?!\\.{1,2}$)[A-Za-z0-9._:@+=~-]{1,128}$'

const deviceId = new RegExp(DEVICE_ID)

export function isDeviceId (id: unknown): id is string {
  return typeof id === 'string' && deviceId.test(id)
}
