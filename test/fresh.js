import { newerSource } from '../build.js'

// Loaded before each test file, which would otherwise run what was built before the last change.

const newer = process.argv[1]?.endsWith('.test.js') && newerSource()
if (newer) {
  console.error(`${newer} is newer than the build: run "npm run build"`)
  process.exit(1)
}
