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
  2 bytes  drops      msgpack [[drop_no, epoch, noted, removed], …]: over all entries, in order,
                      noted [field, note, …] written as they are;
                      removed [field, number, …] removed where the field still holds the number
  3 bytes  entries    msgpack [[entry_id, grants, effects], …], where effects is a list of
                      [drop_index, issued, available, noted_count, removed_count]: what to add to
                      the drop's counters (grants no longer pending: one per field), and how
                      many texts of its noted and removed are this entry's
RETURNS the number of entries acknowledged now
    one that was acknowledged before does nothing and is not counted
]]
local shard_key, grants_key = KEYS[1], KEYS[2]
local group, drops, entries = ARGV[1], cmsgpack.unpack(ARGV[2]), cmsgpack.unpack(ARGV[3])
local CHUNK = 4000 -- below the 8,000 values that Lua can unpack

-- Read: an effect counts only where the drop's state of that very epoch is published and loaded.
local names, state = {}, {}
for i = 1, #drops do names[i] = 'e' .. drops[i][1] end
if #drops > 0 then
  local published = redis.call('HMGET', shard_key, unpack(names))
  for i = 1, #drops do
    local s = {noted = {}, removed = {}, noted_at = 0, removed_at = 0}
    if published[i] and tonumber(published[i]) == drops[i][2] then
      local found = redis.call('HMGET', KEYS[2 * i + 1], 'pending', 'issued', 'available')
      s.current = found[1] and found[2] and found[3]
      s.pending, s.issued, s.available = found[1], found[2], found[3]
    end
    state[i] = s
  end
end

-- Append the texts from `first` to `last` to a list of ranges; nearly always it stays one range.
local function append(ranges, first, last)
  if first > last then return end
  local newest = ranges[#ranges]
  if newest and newest[2] == first - 1 then newest[2] = last else ranges[#ranges + 1] = {first, last} end
end

-- Write: the token of each entry, then what the acknowledged ones add up to.
local gone, grants = {}, 0
for e = 1, #entries do
  local entry = entries[e]
  local won = redis.call('XACK', grants_key, group, entry[1]) == 1
  if won then gone[#gone + 1], grants = entry[1], grants + entry[2] end
  for k = 1, #entry[3] do
    local effect = entry[3][k]
    local s, noted, removed = state[effect[1]], effect[4], effect[5]
    if won and s.current then
      append(s.noted, s.noted_at + 1, s.noted_at + noted)
      append(s.removed, s.removed_at + 1, s.removed_at + removed)
      s.changed = true
      s.pending = s.pending - (noted + removed) / 2
      s.issued, s.available = s.issued + effect[2], s.available + effect[3]
    end
    s.noted_at, s.removed_at = s.noted_at + noted, s.removed_at + removed
  end
end
for first = 1, #gone, CHUNK do
  redis.call('XDEL', grants_key, unpack(gone, first, math.min(first + CHUNK - 1, #gone)))
end
for i = 1, #drops do
  local s, noted, removed = state[i], drops[i][3], drops[i][4]
  local state_key, holders_key = KEYS[2 * i + 1], KEYS[2 * i + 2]
  for _, range in ipairs(s.noted) do
    for first = range[1], range[2], CHUNK do
      redis.call('HSET', holders_key, unpack(noted, first, math.min(first + CHUNK - 1, range[2])))
    end
  end
  for _, range in ipairs(s.removed) do
    for k = range[1], range[2], 2 do
      if redis.call('HGET', holders_key, removed[k]) == removed[k + 1] then
        redis.call('HDEL', holders_key, removed[k])
      end
    end
  end
  if s.changed then
    redis.call('HSET', state_key, 'pending', s.pending, 'issued', s.issued, 'available', s.available)
  end
end
if grants > 0 then redis.call('HINCRBY', shard_key, 'backlog', -grants) end
return #gone
