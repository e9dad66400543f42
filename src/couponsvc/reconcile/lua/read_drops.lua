#!lua flags=no-writes
--[[
read_drops: say what Redis holds of some drops of a shard, each in one line of text.

Why one script: a drop's counters, its holders and the stream must be seen at one moment, or a
grant that moves between two reads looks like a unit lost. And it is cheap: one reply in place of
three per drop; texts that are equal to those of the last time need not even be parsed.

KEYS (all share the shard's hash tag)
  1 hash   shard      e<drop_no> -> published epoch; backlog -> grants not acknowledged
  2 stream grants
  … pairs  drops      each drop's state hash and holders hash, under the epoch that is asked about
ARGV
  … bytes  epoch_fields  each drop's field of the shard hash, same order
RETURNS a list
    1  entries on the stream
    2  grants that are counted as not acknowledged
    …  a text per drop, same order: what is published (0: nothing), number of holders, then the
       fields of the state in the order of values.keys.STATE_FIELDS ("-": missing)
]]
local shard_key, grants_key = KEYS[1], KEYS[2]

local backlog = redis.call('HGET', shard_key, 'backlog') or '0'
local told = {redis.call('XLEN', grants_key), tonumber(backlog)}
if #ARGV == 0 then return told end

local published = redis.call('HMGET', shard_key, unpack(ARGV))
for i = 1, #ARGV do
  local state_key, holders_key = KEYS[2 * i + 1], KEYS[2 * i + 2]
  local fields = redis.call('HMGET', state_key, 'available', 'pending', 'issued', 'quantity', 'limit',
    'opens_ms', 'closes_ms', 'status', 'version')
  for k = 1, #fields do fields[k] = fields[k] or '-' end
  told[i + 2] = (published[i] or '0') .. ' ' .. redis.call('HLEN', holders_key) .. ' '
    .. table.concat(fields, ' ')
end
return told
