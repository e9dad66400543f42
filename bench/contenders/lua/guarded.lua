--[[
guarded: take one unit of a drop for one person (level B).

Why one script: two presses of one person must not both find the set without them, and the
stock must not be counted down for somebody who is refused. Used by the usual service.

KEYS
  1 stock    string  units left
  2 persons  set     who has one
ARGV
  1 person   string
RETURNS units left after this one; -1 sold out; -2 has one already
]]
local left = tonumber(redis.call('GET', KEYS[1]) or '0')
if left <= 0 then return -1 end
if redis.call('SADD', KEYS[2], ARGV[1]) == 0 then return -2 end
return redis.call('DECR', KEYS[1])
