--[[
define_drop: give a loaded drop the rules and the quantity that Postgres holds, in one step.

Why one script: `available` moves by the difference of two quantities, and a grant between
reading the old one and writing the new one would be lost or given twice. The version makes
it harmless to run again and in any order.

KEYS (all share the shard's hash tag)
  1 hash   shard      e<drop_no> -> published epoch; v<drop_no> -> version told while it was closed
  2 hash   state      of the drop under the epoch of ARGV 2
ARGV
  1 int    drop_no
  2 int    epoch
  3 int    version    of the definition
  4 int    quantity
  5 int    limit      vouchers per person
  6 int    opens_ms
  7 int    closes_ms
  8 int    status     values.drop.DropStatus
  9 bytes  control    channel on which the drop_no is published when something changed
  10 int   committed  1: Postgres has it for certain, so whoever opens the drop must not fall behind it
RETURNS one letter; but for the version told, nothing is changed unless it is A
  F FENCED
  Y ALREADY
  C CONFLICT
  A APPLIED
]]
local shard_key, state_key = KEYS[1], KEYS[2]
local drop_no, epoch, version, quantity = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local limit, opens_ms, closes_ms, status, control = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local committed = ARGV[10] == '1'

-- Closed: a loader may have read the definition before this one, and must hear of it.
local function fenced()
  local told = redis.call('HGET', shard_key, 'v' .. drop_no)
  if committed and (not told or tonumber(told) < version) then
    redis.call('HSET', shard_key, 'v' .. drop_no, ARGV[3])
  end
  return 'F'
end

local published = redis.call('HGET', shard_key, 'e' .. drop_no)
if not published or tonumber(published) ~= epoch then return fenced() end

local state = redis.call('HMGET', state_key, 'available', 'quantity', 'version')
if not (state[1] and state[2] and state[3]) then return fenced() end -- missing is never zero: not loaded
if tonumber(state[3]) >= version then return 'Y' end

local available = tonumber(state[1]) + quantity - tonumber(state[2])
if available < 0 then return 'C' end -- granted units cannot be taken away here

redis.call('HSET', state_key, 'available', string.format('%.0f', available), 'quantity', ARGV[4],
  'limit', limit, 'opens_ms', opens_ms, 'closes_ms', closes_ms, 'status', status, 'version', ARGV[3])
redis.call('PUBLISH', control, drop_no)
return 'A'
