--[[
publish_epoch: open a drop under a freshly loaded epoch, unless a newer one is open already.

Why one script: it is a compare-and-set. A loader that was paused for a minute must not put
its old holders in front of those that another one has published meanwhile, and nobody may
see the epoch before its state.

KEYS (all share the shard's hash tag)
  1 hash   shard      e<drop_no> -> published epoch; negative: fenced, and which it was
                      v<drop_no> -> version of a definition that was told while the drop was closed
  2 hash   state      of the drop under the epoch of ARGV 2; written here, whole
  3 hash   holders    of the drop under the epoch of ARGV 2; loaded before
ARGV
  1 int    drop_no
  2 int    epoch
  3 int    issued     vouchers that Postgres had when the epoch was raised
  4 int    quantity
  5 int    limit      vouchers per person
  6 int    opens_ms
  7 int    closes_ms
  8 int    status     values.drop.DropStatus
  9 int    version    of the definition
  10 bytes control    channel on which the drop_no is published
RETURNS one letter; nothing is changed unless it is P
  R REFUSED
  I INCOMPLETE
  O OUTDATED
  P PUBLISHED
]]
local shard_key, state_key, holders_key = KEYS[1], KEYS[2], KEYS[3]
local drop_no, epoch, issued, quantity = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local limit, opens_ms, closes_ms, status, version = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local control = ARGV[10]

local published = redis.call('HGET', shard_key, 'e' .. drop_no)
if published and math.abs(tonumber(published)) >= epoch then return 'R' end
if redis.call('HLEN', holders_key) ~= issued or issued > quantity then return 'I' end
-- An operator was told that a newer definition stands: with an older quantity "sold out" could be wrong.
local told = redis.call('HGET', shard_key, 'v' .. drop_no)
if told and tonumber(told) > tonumber(version) then return 'O' end

redis.call('HSET', state_key, 'available', string.format('%.0f', quantity - issued), 'pending', '0',
  'issued', ARGV[3], 'quantity', ARGV[4], 'limit', limit, 'opens_ms', opens_ms,
  'closes_ms', closes_ms, 'status', status, 'version', version)
redis.call('HSET', shard_key, 'e' .. drop_no, ARGV[2])
redis.call('HDEL', shard_key, 'v' .. drop_no)
redis.call('PUBLISH', control, drop_no)
return 'P'
