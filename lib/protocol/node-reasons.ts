import { nodeReasons } from './reasons.ts'
import { reasons } from './errors.ts'

// Adds the reasons of a node to the table. Each entry point that runs as a node imports this file; the client does not.

Object.assign(reasons, nodeReasons)
