#!lua flags=allow-oom
--[[
acknowledge: take settled entries off the stream and note in Redis what Postgres committed.

Why one script: an entry's effects must happen exactly once, however often a drainer reports
them. XACK answers 1 exactly once per entry, and what follows happens in the same step.
Why allow-oom: a full Redis must still be able to give units back and to empty its stream.

KEYS (all share the shard's hash tag)
  1 hash   shard      e<drop_no> -> published epoch; backlog -> grants not acknowledged
  2 stream grants     the entries
  … pairs  drops      for each drop of ARGV 2: its state hash, its holders hash
ARGV
  1 text   group      consumer group
  2 bytes  drops      msgpack [[drop_no, epoch], …]
  3 bytes  entries    msgpack [[entry_id, grants, effects], …], where effects is a list of
                      [drop_index, issued, available, noted, removed]: what to add to the
                      drop's counters (grants no longer pending: one per field below);
                      noted [field, note, …] written as they are;
                      removed [field, number, …] removed where the field still holds the number
RETURNS the number of entries acknowledged now
    one that was acknowledged before does nothing and is not counted
]]
local shard_key, grants_key = KEYS[1], KEYS[2]
local group, drops, entries = ARGV[1], cmsgpack.unpack(ARGV[2]), cmsgpack.unpack(ARGV[3])
local CHUNK = 4000 -- below the 8,000 values that Lua can unpack

-- Read: an effect counts only where the drop's state of that very epoch is published and loaded.
local names, current = {}, {}
for i = 1, #drops do names[i] = 'e' .. drops[i][1] end
if #drops > 0 then
  local published = redis.call('HMGET', shard_key, unpack(names))
  for i = 1, #drops do
    current[i] = published[i] and tonumber(published[i]) == drops[i][2]
      and redis.call('HEXISTS', KEYS[2 * i + 1], 'pending') == 1
  end
end

local acknowledged, grants = 0, 0
local function apply(effect)
  local i = effect[1]
  if not current[i] then return end
  local state_key, holders_key = KEYS[2 * i + 1], KEYS[2 * i + 2]
  local noted, removed = effect[4], effect[5]
  for first = 1, #noted, CHUNK do
    redis.call('HSET', holders_key, unpack(noted, first, math.min(first + CHUNK - 1, #noted)))
  end
  for k = 1, #removed, 2 do
    if redis.call('HGET', holders_key, removed[k]) == removed[k + 1] then
      redis.call('HDEL', holders_key, removed[k])
    end
  end
  local settled = (#noted + #removed) / 2
  if settled > 0 then redis.call('HINCRBY', state_key, 'pending', -settled) end
  if effect[2] > 0 then redis.call('HINCRBY', state_key, 'issued', effect[2]) end
  if effect[3] > 0 then redis.call('HINCRBY', state_key, 'available', effect[3]) end
end

for e = 1, #entries do
  local entry = entries[e]
  if redis.call('XACK', grants_key, group, entry[1]) == 1 then
    redis.call('XDEL', grants_key, entry[1])
    acknowledged, grants = acknowledged + 1, grants + entry[2]
    for k = 1, #entry[3] do apply(entry[3][k]) end
  end
end
if grants > 0 then redis.call('HINCRBY', shard_key, 'backlog', -grants) end
return acknowledged
