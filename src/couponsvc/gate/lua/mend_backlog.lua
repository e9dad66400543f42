--[[
mend_backlog: set the count of unacknowledged grants to zero where the stream holds none.

Grants and their count are written and removed together, so the two can part only where an
entry was taken off the stream without anybody knowing its grants (a dead letter). Left alone,
the count would fill the backlog for ever.

KEYS (all share the shard's hash tag)
  1 hash   shard      backlog -> grants not acknowledged
  2 stream grants
ARGV
RETURNS the number of grants that were counted and are not there; 0: nothing was changed
]]
local shard_key, grants_key = KEYS[1], KEYS[2]

local backlog = tonumber(redis.call('HGET', shard_key, 'backlog') or 0)
if backlog == 0 or redis.call('XLEN', grants_key) > 0 then return 0 end

redis.call('HSET', shard_key, 'backlog', '0')
return backlog
