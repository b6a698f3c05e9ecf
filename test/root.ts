import { fileURLToPath } from 'node:url'

/** The folder of the checkout. The tests are run from `dist/test`. */
export const root = fileURLToPath(new URL('../..', import.meta.url))
