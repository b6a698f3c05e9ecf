import type { Test } from 'tap'
import type { Outcome } from './campaigns/campaign.ts'

/** A campaign found nothing wrong; its figures are in the output. */
export async function passes (t: Test, campaign: Promise<Outcome>): Promise<void> {
  const { line, wrong } = await campaign
  t.comment(line)
  t.strictSame(wrong, [])
}
