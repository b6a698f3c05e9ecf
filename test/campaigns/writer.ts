import { diskMailbox } from '../../lib/storage/disk/index.ts'

// Puts letters until it is killed, and prints each id once the letter is acknowledged.

const mailbox = await diskMailbox({ path: process.argv[2]! })
const limits = { letters: Infinity, bytes: Infinity }
for (let n = 0; ; n++) {
  const id = String(n)
  await mailbox.put('d', { id, body: `${id} ${'x'.repeat(n % 500)}`, expiresAt: Date.now() + 3_600_000 }, limits)
  console.log(id)
}
