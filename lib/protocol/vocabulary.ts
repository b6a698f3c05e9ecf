import { nodeAnswers } from './answers.ts'
import { reasons } from './errors.ts'

// A node has more to say than a client; whatever is one imports this.

Object.assign(reasons, nodeAnswers)
