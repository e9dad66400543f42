--[[
unload_epoch: remove a drop's keys of one epoch, unless that epoch is the published one.

Why one script: between a look at the published epoch and the removal, another loader may
publish, and grants would vanish with the keys.

KEYS (all share the shard's hash tag)
  1 hash   shard      e<drop_no> -> published epoch; negative: fenced
  2 hash   state      of the drop under the epoch of ARGV 2
  3 hash   holders    of the drop under the epoch of ARGV 2
ARGV
  1 int    drop_no
  2 int    epoch
RETURNS one letter; nothing is changed unless it is U
  O OPEN
  U UNLOADED
]]
local shard_key, state_key, holders_key = KEYS[1], KEYS[2], KEYS[3]
local drop_no, epoch = ARGV[1], tonumber(ARGV[2])

local published = redis.call('HGET', shard_key, 'e' .. drop_no)
if published and tonumber(published) == epoch then return 'O' end

redis.call('UNLINK', state_key, holders_key) -- memory is given back in the background
return 'U'
