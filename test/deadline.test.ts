import t from 'tap'
import { withDeadline } from '../lib/protocol/deadline.ts'

const late = () => new Error('late')
const never = new Promise<never>(() => {})

t.test('work that ends in time settles as it would alone', async t => {
  t.equal(await withDeadline(1, 10_000, late), 1)
  await t.rejects(withDeadline(Promise.reject(new Error('broken')), 10_000, late), { message: 'broken' })
})

t.test('work that takes too long is rejected and aborted with the same reason', async t => {
  const controller = new AbortController()
  await t.rejects(withDeadline(never, 1, late, controller), { message: 'late' })
  t.match(controller.signal.reason, { message: 'late' })
})

t.test('work that is aborted is rejected with that reason, whenever that happens', async t => {
  const [before, later] = [new AbortController(), new AbortController()]
  before.abort(new Error('gone'))
  const waiting = withDeadline(never, 10_000, late, later)
  later.abort(new Error('left'))
  await t.rejects(waiting, { message: 'left' })
  await t.rejects(withDeadline(never, 10_000, late, before), { message: 'gone' })
})
