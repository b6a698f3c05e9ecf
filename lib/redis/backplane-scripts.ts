import { Script } from './script.ts'

// all of them may exceed the memory of Redis: what they write is bounded by the number of connected devices

/**
 * What the scripts share. A record of an owner is `generation home epoch claim since after node`: `home` is the id of the node that has the connection,
 * `epoch` counts how often that node has joined, `claim` numbers its connections, `after` is the generation of the connection that it replaced, `node` is
 * the name of the node in presences. An entry of a node is `epoch lease`, the lease in milliseconds.
 */
const prelude = `
local function now ()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

local function text (number)
  return string.format('%.0f', number)
end

local function parse (record)
  local generation, home, epoch, claim, since, after, node = string.match(record, '^(%d+) (%S+) (%d+) (%d+) (%S+) (%d+) (.*)$')
  return { generation = tonumber(generation), home = home, epoch = tonumber(epoch), claim = claim, since = since, after = after, node = node }
end

local function nodeEntry (nodes, home)
  local entry = redis.call('HGET', nodes, home)
  if not entry then return nil end
  local epoch, lease = string.match(entry, '^(%d+) (%d+)$')
  return { epoch = epoch, lease = tonumber(lease) }
end

local function isAlive (nodes, home)
  local entry = nodeEntry(nodes, home)
  return entry ~= nil and entry.lease * 1000 > now()
end

local function isListed (deviceId)
  return string.sub(deviceId, 1, 1) ~= '$'
end

local function tell (channel, kind, deviceId, record)
  if not isListed(deviceId) then return end
  redis.call('PUBLISH', channel, '{"kind":"' .. kind .. '","presence":{"deviceId":' .. cjson.encode(deviceId) .. ',"node":' .. cjson.encode(record.node) ..
    ',"generation":' .. text(record.generation) .. ',"since":' .. record.since .. '}}')
end

local function demandYield (channel, deviceId, generation)
  redis.call('PUBLISH', channel, '{"type":"yield","deviceId":' .. cjson.encode(deviceId) .. ',"generation":' .. text(generation) .. '}')
end
`

/** Writes a record, and tells the older owner, if there is one, and those who follow. */
const write = `
local function put (deviceId, record)
  local values = { text(record.generation), record.home, record.epoch, record.claim, record.since, record.after, record.node }
  redis.call('HSET', KEYS[1], deviceId, table.concat(values, ' '))
end

local function write (deviceId, record, older)
  put(deviceId, record)
  if isListed(deviceId) then redis.call('ZADD', KEYS[2], 0, deviceId) end
  if older then
    tell(KEYS[5], 'disconnected', deviceId, older)
    demandYield(KEYS[6] .. older.home, deviceId, record.generation)
  end
  tell(KEYS[5], 'connected', deviceId, record)
end
`

/** Starts a lease of a node. KEYS: nodes, generation. ARGV: home, epoch, milliseconds of the lease, highest known generation. Returns the time. */
export const joinScript = new Script(`${prelude}
local time = now()
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. text(math.floor(time / 1000) + ARGV[3]))
if tonumber(ARGV[4]) > tonumber(redis.call('GET', KEYS[2]) or 0) then redis.call('SET', KEYS[2], ARGV[4]) end
return text(time)
`, { mayExceedMemory: true })

/**
 * Renews the lease of a node, and sends the node a message. KEYS: nodes, generation, sweeper, channel of the node. ARGV: home, epoch, milliseconds of the lease,
 * milliseconds of the turn to sweep. Returns the time, the highest generation, 0 if the lease has ended, and the homes and epochs of dead nodes if it is the
 * turn of this node to sweep.
 */
export const beatScript = new Script(`${prelude}
local time = now()
local result = { text(time), redis.call('GET', KEYS[2]) or '0', 1 }
local own = nodeEntry(KEYS[1], ARGV[1])
if not own or own.epoch ~= ARGV[2] or own.lease * 1000 <= time then
  result[3] = 0
  return result
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. text(math.floor(time / 1000) + ARGV[3]))
redis.call('PUBLISH', KEYS[4], '{"type":"beat"}')
local dead = {}
for _, home in ipairs(redis.call('HKEYS', KEYS[1])) do
  local entry = nodeEntry(KEYS[1], home)
  if entry.lease * 1000 <= time then
    table.insert(dead, home)
    table.insert(dead, entry.epoch)
  end
end
if #dead > 0 and redis.call('SET', KEYS[3], ARGV[1], 'NX', 'PX', ARGV[4]) then
  for _, value in ipairs(dead) do table.insert(result, value) end
end
return result
`, { mayExceedMemory: true })

/** Ends the lease of a node. KEYS: nodes. ARGV: home. */
export const leaveScript = new Script(`
redis.call('HDEL', KEYS[1], ARGV[1])
`, { mayExceedMemory: true })

/** The ids of the nodes that are alive. KEYS: nodes. */
export const nodesScript = new Script(`${prelude}
local alive = {}
for _, home in ipairs(redis.call('HKEYS', KEYS[1])) do
  if isAlive(KEYS[1], home) then table.insert(alive, home) end
end
return alive
`, { mayExceedMemory: true })

/**
 * Takes a device. KEYS: owners, index, nodes, generation, changes, prefix of the channels of nodes. ARGV: home, epoch, highest known generation, device id, claim, since, node,
 * the generation of the older owner that may be replaced. Returns whether it did, and the generation of the owner; nothing if the lease of the node has ended.
 */
export const claimScript = new Script(`${prelude}${write}
local own = nodeEntry(KEYS[3], ARGV[1])
if not own or own.epoch ~= ARGV[2] then return {} end
local found = redis.call('HGET', KEYS[1], ARGV[4])
local older = found and parse(found)
if older and text(older.generation) ~= ARGV[8] then return { 0, text(older.generation) } end
local last = math.max(tonumber(redis.call('GET', KEYS[4]) or 0), tonumber(ARGV[3]), older and older.generation or 0)
local generation = math.max(now(), last + 1)
redis.call('SET', KEYS[4], text(generation))
write(ARGV[4], { generation = generation, home = ARGV[1], epoch = ARGV[2], claim = ARGV[5], since = ARGV[6], after = older and text(older.generation) or '0', node = ARGV[7] }, older)
return { 1, text(generation) }
`, { mayExceedMemory: true })

/**
 * Says again which devices a node has: writes each record that is missing, or that of a connection with a lower generation. KEYS: as for claims. ARGV: home, epoch, and for each
 * device its id, claim, generation, since, after, node. Returns for each 1 if it was so, 2 if its record was written, and else the generation of its owner
 * and of the connection that this owner replaced; nothing if the lease of the node has ended.
 */
export const assertScript = new Script(`${prelude}${write}
local own = nodeEntry(KEYS[3], ARGV[1])
if not own or own.epoch ~= ARGV[2] then return {} end
local results = {}
local highest = tonumber(redis.call('GET', KEYS[4]) or 0)
for at = 3, #ARGV, 6 do
  local deviceId = ARGV[at]
  local record = { home = ARGV[1], epoch = ARGV[2], claim = ARGV[at + 1], generation = tonumber(ARGV[at + 2]), since = ARGV[at + 3], after = ARGV[at + 4], node = ARGV[at + 5] }
  local found = redis.call('HGET', KEYS[1], deviceId)
  local other = found and parse(found)
  local isOwn = other and other.home == record.home and other.claim == record.claim
  if isOwn and other.epoch == tonumber(record.epoch) and other.generation == record.generation then
    table.insert(results, 1)
  elseif isOwn or not other or other.generation < record.generation then
    if isOwn then
      record.generation = math.max(record.generation, other.generation)
      put(deviceId, record)
    else
      write(deviceId, record, other)
    end
    highest = math.max(highest, record.generation)
    table.insert(results, 2)
  else
    table.insert(results, text(other.generation) .. ' ' .. other.after)
  end
end
redis.call('SET', KEYS[4], text(highest))
return results
`, { mayExceedMemory: true })

/** Gives devices up. KEYS: owners, index, changes. ARGV: home, and for each device its id and claim. */
export const releaseScript = new Script(`${prelude}
for at = 2, #ARGV, 2 do
  local found = redis.call('HGET', KEYS[1], ARGV[at])
  local record = found and parse(found)
  if record and record.home == ARGV[1] and record.claim == ARGV[at + 1] then
    redis.call('HDEL', KEYS[1], ARGV[at])
    redis.call('ZREM', KEYS[2], ARGV[at])
    tell(KEYS[3], 'disconnected', ARGV[at], record)
  end
end
`, { mayExceedMemory: true })

/**
 * Erases some of the records that a node has written in this epoch or an earlier one; at the end also the entry of the node, if that is as old. KEYS: owners, index, nodes,
 * changes. ARGV: home, epoch, cursor, number of records. Returns the next cursor.
 */
export const sweepScript = new Script(`${prelude}
local page = redis.call('HSCAN', KEYS[1], ARGV[3], 'COUNT', ARGV[4])
for at = 1, #page[2], 2 do
  local deviceId = page[2][at]
  local record = parse(page[2][at + 1])
  if record.home == ARGV[1] and record.epoch <= tonumber(ARGV[2]) then
    redis.call('HDEL', KEYS[1], deviceId)
    redis.call('ZREM', KEYS[2], deviceId)
    tell(KEYS[4], 'disconnected', deviceId, record)
  end
end
local entry = nodeEntry(KEYS[3], ARGV[1])
if page[1] == '0' and entry and tonumber(entry.epoch) <= tonumber(ARGV[2]) then redis.call('HDEL', KEYS[3], ARGV[1]) end
return page[1]
`, { mayExceedMemory: true })

/**
 * Sends a message to the node of a device. KEYS: owners, nodes, prefix of the channels of nodes. ARGV: device id, message. Returns the home, the number of
 * receivers, and 1 if the node is alive; nothing if the device has no owner.
 */
export const askScript = new Script(`${prelude}
local found = redis.call('HGET', KEYS[1], ARGV[1])
if not found then return {} end
local home = parse(found).home
return { home, redis.call('PUBLISH', KEYS[3] .. home, ARGV[2]), isAlive(KEYS[2], home) and 1 or 0 }
`, { mayExceedMemory: true })

/** Publishes a message, with the time, to several channels. KEYS: the channels. ARGV: the message. Returns the number of receivers. */
export const publishScript = new Script(`${prelude}
local message = text(now()) .. '\\n' .. ARGV[1]
local receivers = 0
for _, channel in ipairs(KEYS) do receivers = receivers + redis.call('PUBLISH', channel, message) end
return receivers
`, { mayExceedMemory: true })

/**
 * A page of the connected devices. KEYS: owners, index, nodes. ARGV: lower bound, upper bound, number of ids to read. Returns the last id that was read, if
 * there may be more, and then ids and records.
 */
export const listScript = new Script(`${prelude}
local ids = redis.call('ZRANGE', KEYS[2], ARGV[1], ARGV[2], 'BYLEX', 'LIMIT', 0, ARGV[3])
local result = { #ids == tonumber(ARGV[3]) and ids[#ids] or '' }
for _, deviceId in ipairs(ids) do
  local record = redis.call('HGET', KEYS[1], deviceId)
  if record and isAlive(KEYS[3], parse(record).home) then
    table.insert(result, deviceId)
    table.insert(result, record)
  end
end
return result
`, { mayExceedMemory: true })
