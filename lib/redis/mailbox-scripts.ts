import { Script } from './script.ts'

/**
 * What the scripts share. KEYS[1] is the prefix of all keys: a script learns only from Redis which letter it ends, so its caller cannot name all keys.
 *
 * A device with waiting letters has two keys. `order:<device>` is a sorted set of letter ids by position. `letters:<device>` is a hash with the fields
 * `l<letter>` (the record of the letter), `a<letter>` (its attempts), `c<collapse key>` (the id of the letter with that key) and `bytes` (the sum of
 * the bodies). `receipt:<device> <letter>` is the receipt of an ended letter. `expiries` is a sorted set of all waiting letters by the time at which they
 * expire. `position` is the last position. Records are described in letter-format.ts.
 */
const prelude = String.raw`
local prefix, deviceId, letterId = KEYS[1], ARGV[1], ARGV[2]
local order, letters, expiries = prefix .. 'order:' .. deviceId, prefix .. 'letters:' .. deviceId, prefix .. 'expiries'

local function receiptKey (id)
  return prefix .. 'receipt:' .. deviceId .. ' ' .. id
end

local function parse (record)
  local collapse, receipt, bodyStart = string.match(record, '^([^\n]*)\n([^\n]*)\n[^\n]*\n()')
  return collapse, receipt, #record - bodyStart + 1
end

local function receiptOf (id)
  local record = redis.call('HGET', letters, 'l' .. id)
  if not record then return redis.call('GET', receiptKey(id)) end
  local _, receipt = parse(record)
  return receipt
end

local function finish (id, ending, keepReceipts)
  redis.call('ZREM', expiries, deviceId .. ' ' .. id)
  redis.call('ZREM', order, id)
  local record = redis.call('HGET', letters, 'l' .. id)
  if not record then return nil end
  local collapse, queued, size = parse(record)
  local receipt = queued .. '\n' .. ending
  redis.call('SET', receiptKey(id), receipt, 'PX', keepReceipts)
  if redis.call('EXISTS', order) == 0 then
    redis.call('DEL', letters)
  else
    redis.call('HDEL', letters, 'l' .. id, 'a' .. id, 'c' .. collapse)
    redis.call('HINCRBY', letters, 'bytes', -size)
  end
  return receipt
end
`

/** Returns `known` and the receipt of the letter with this id, or `full`, or `kept` and, if a letter was replaced, its receipt. */
export const putScript = new Script(`${prelude}
local record, expiresAt, maxLetters, maxBytes, ending, keepReceipts = ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7], ARGV[8]
local known = receiptOf(letterId)
if known then return { 'known', known } end

local collapse, _, size = parse(record)
local count = redis.call('ZCARD', order)
local fields = redis.call('HMGET', letters, 'bytes', 'c' .. collapse)
local bytes, replaced = tonumber(fields[1] or 0), fields[2]
local freedLetters, freedBytes = 0, 0
if replaced then
  local _, _, replacedSize = parse(redis.call('HGET', letters, 'l' .. replaced))
  freedLetters, freedBytes = 1, replacedSize
end
if count - freedLetters >= maxLetters or bytes - freedBytes + size > maxBytes then return { 'full' } end

local reply = { 'kept' }
if replaced then reply[2] = finish(replaced, ending, keepReceipts) end
local time = redis.call('TIME') -- positions grow even if Redis loses the last one, and if its clock is set back
local last = tonumber(redis.call('GET', prefix .. 'position') or 0)
local position = string.format('%.0f', math.max(last + 1, time[1] * 1000000 + time[2]))
redis.call('SET', prefix .. 'position', position)
redis.call('ZADD', order, position, letterId)
redis.call('ZADD', expiries, expiresAt, deviceId .. ' ' .. letterId)
redis.call('HSET', letters, 'l' .. letterId, record, 'bytes', string.format('%.0f', bytes - freedBytes + size))
if collapse ~= '' then redis.call('HSET', letters, 'c' .. collapse, letterId) end
return reply`)

/** Returns whether this call ended the letter, and the receipt of the letter if it has ended. */
export const settleScript = new Script(`${prelude}
local receipt = finish(letterId, ARGV[3], ARGV[4])
if receipt then return { 1, receipt } end
return { 0, redis.call('GET', receiptKey(letterId)) }`, { mayExceedMemory: true })

export const receiptScript = new Script(`${prelude}
return receiptOf(letterId)`, { mayExceedMemory: true })

export const addAttemptScript = new Script(`${prelude}
if redis.call('HEXISTS', letters, 'l' .. letterId) == 0 then return 0 end
return redis.call('HINCRBY', letters, 'a' .. letterId, 1)`, { mayExceedMemory: true })

/**
 * Returns whether letters are left behind the page, then the position and the record of each letter. The page has at most ARGV[3] letters, and ends with
 * the letter with which it reaches ARGV[4] bytes.
 */
export const pageScript = new Script(`${prelude}
local after, maxLetters, maxBytes = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local found = redis.call('ZRANGE', order, '(' .. after, '+inf', 'BYSCORE', 'LIMIT', 0, maxLetters + 1, 'WITHSCORES')
local page, bytes = { 0 }, 0
for at = 1, #found, 2 do
  if #page > maxLetters * 2 or bytes >= maxBytes then
    page[1] = 1
    break
  end
  local record = redis.call('HGET', letters, 'l' .. found[at])
  if record then
    bytes = bytes + #record
    page[#page + 1] = found[at + 1]
    page[#page + 1] = record
  end
end
return page`, { mayExceedMemory: true })

/** Returns device and letter, separated by a space, of the first ARGV[2] letters that have expired at the time ARGV[1]. */
export const dueScript = new Script(`
return redis.call('ZRANGE', KEYS[1], '-inf', ARGV[1], 'BYSCORE', 'LIMIT', 0, ARGV[2])`, { mayExceedMemory: true })

/** Returns the number of members of a sorted set. */
export const countScript = new Script(`
return redis.call('ZCARD', KEYS[1])`, { mayExceedMemory: true })
