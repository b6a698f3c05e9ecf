import { newerSource } from '../build.js'

// tap loads this before each test file. The first one of a run fails if the run would test what was built before the last change; a change during the run is fine.

const newer = process.env.TAP_CHILD_ID === '1' && process.argv[1]?.endsWith('.test.js') && newerSource()
if (newer) {
  console.error(`${newer} is newer than the build: run "npm run build"`)
  process.exit(1)
}
