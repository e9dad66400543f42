--[[
queued: take one unit of a drop for one person and queue the grant (level C).

Why one script: a grant that is counted but not queued is lost for ever. Used by Fastify, Go
and nginx; whoever writes the stream to a database is not part of the bench.

KEYS
  1 stock    string  units left
  2 persons  set     who has one
  3 grants   stream  person, number, channel, region
ARGV
  1 person   string
  2 number   string
  3 channel  string
  4 region   string
RETURNS units left after this one; -1 sold out; -2 has one already
]]
local left = tonumber(redis.call('GET', KEYS[1]) or '0')
if left <= 0 then return -1 end
if redis.call('SADD', KEYS[2], ARGV[1]) == 0 then return -2 end
redis.call('XADD', KEYS[3], '*', 'person', ARGV[1], 'number', ARGV[2], 'channel', ARGV[3], 'region', ARGV[4])
return redis.call('DECR', KEYS[1])
