--[[
fence_drop: stop the grabs of a drop on this server until a newer epoch is published.

The published epoch is negated rather than deleted: no grab and no acknowledgement matches
it any more, but which epoch it was stays known, so that a loader of an older epoch is
still refused by publish_epoch.

KEYS
  1 hash   shard      e<drop_no> -> published epoch; negative: fenced, and which it was
ARGV
  1 int    drop_no
  2 int    epoch      the one being prepared in Postgres; the same or a newer one stays open
  3 bytes  control    channel on which the drop_no is published when something changed
RETURNS one letter; nothing is changed unless it is F
  C CLOSED
  O OPEN
  F FENCED
]]
local shard_key = KEYS[1]
local drop_no, epoch, control = ARGV[1], tonumber(ARGV[2]), ARGV[3]

local published = redis.call('HGET', shard_key, 'e' .. drop_no)
if not published or tonumber(published) <= 0 then return 'C' end
if tonumber(published) >= epoch then return 'O' end

redis.call('HSET', shard_key, 'e' .. drop_no, '-' .. published)
redis.call('PUBLISH', control, drop_no)
return 'F'
