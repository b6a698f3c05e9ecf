import type { Test } from 'tap'
import type { Outcome } from './campaigns/campaign.ts'

/** Asserts that a campaign found no violation, and prints its figures. */
export async function passes (t: Test, campaign: Promise<Outcome>): Promise<void> {
  const { line, wrong } = await campaign
  t.comment(line)
  t.strictSame(wrong, [])
}
