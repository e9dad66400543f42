--[[
grab_batch: decide a batch of grabs of one shard in one atomic step.

Why one script: duplicate, limit and stock checks must see each other's writes, and a
grant must reach the stream in the same step, or a crash between the two loses it.
Notes follow in the order of their grabs: R, L the holder's note; N opens_ms; E closes_ms.

Rates (GCRA): a limited partner's grab uses 1/rate of a second, up to a burst ahead of the clock; F and
T use nothing. A repeated number may go as far ahead again: it has precedence over new grabs, not over
the rate.

KEYS (all share the shard's hash tag)
  1 hash   shard      e<drop_no> -> published epoch; backlog -> grants not acknowledged
  2 stream grants     one entry per batch that granted anything
  … pairs  drops      for each drop of ARGV 2: its state hash, its holders hash
  … string rates      for each rate of ARGV 5: until when it is used, in us of the clock; expires then
ARGV
  1 bytes  origin     msgpack [origin, batch_no]; copied to the entry unread
  2 bytes  drops      msgpack [[drop_no, epoch], …]; copied to the entry
  3 bytes  grabs      msgpack [[drop_index, holder, out_request_no, channel, region], …]; a limited
                      partner's has its rate_index behind
  4 int    backlog_max_count
  5 bytes  rates      msgpack [[interval_us, burst_count], …]; left out where nobody is limited
RETURNS [codes, note, …, ahead_us, …]: one byte per grab, same order, first match wins; then the
  notes; then of each rate how far ahead of the clock it is used now
  F FENCED
  R REPEATED
  P REPEATED_PENDING
  T RATE_LIMITED
  Z PAUSED
  E ENDED
  N NOT_STARTED
  L PERSON_LIMIT
  S SOLD_OUT_PENDING
  X SOLD_OUT
  B OVERLOADED
  G GRANTED
]]
local shard_key, grants_key = KEYS[1], KEYS[2]
local origin, drops_bytes, backlog_max = ARGV[1], ARGV[2], tonumber(ARGV[4])
local drops, grabs = cmsgpack.unpack(drops_bytes), cmsgpack.unpack(ARGV[3])
local rates = ARGV[5] and cmsgpack.unpack(ARGV[5]) or {}
local PAUSED, CLOSED = 1, 2 -- values.drop.DropStatus
local NEW, REPEATED = 1, 2 -- how many bursts ahead a rate may be used
local READ_CHUNK = 4000 -- below the 8,000 values that Lua can unpack

local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
local now_us = clock[1] * 1000000 + clock[2]

-- Read: how far each rate is used, and no further than it could be: a clock that was set back or a
-- rate that was changed keeps nobody out for longer.
for i = 1, #rates do
  local interval_us, burst_us = rates[i][1], rates[i][1] * rates[i][2]
  local ahead_us = tonumber(redis.call('GET', KEYS[2 * #drops + 2 + i]) or 0) - now_us
  rates[i] = {interval_us = interval_us, burst_us = burst_us, before_us = ahead_us,
    ahead_us = math.max(0, math.min(ahead_us, burst_us * REPEATED))}
end

-- Read: the published epochs and the backlog, then each drop's state.
local names = {'backlog'}
for i = 1, #drops do names[i + 1] = 'e' .. drops[i][1] end
local published = redis.call('HMGET', shard_key, unpack(names))
local backlog = tonumber(published[1] or 0)
local room = backlog_max - backlog
local state, asked = {}, {}
for i = 1, #drops do
  asked[i] = {}
  if published[i + 1] and tonumber(published[i + 1]) == drops[i][2] then
    local s = redis.call('HMGET', KEYS[2 * i + 1], 'available', 'pending', 'issued', 'quantity',
      'limit', 'opens_ms', 'closes_ms', 'status')
    if s[1] and s[8] then -- a missing key is never zero: it means not loaded
      state[i] = {available = tonumber(s[1]), pending = tonumber(s[2]), issued = tonumber(s[3]),
        quantity = tonumber(s[4]), limit = tonumber(s[5]), opens_ms = tonumber(s[6]),
        closes_ms = tonumber(s[7]), status = tonumber(s[8]), held = {}, taken = 0, written = {}}
    end
  end
end

-- Read: every holder field that a grab of this batch could meet, in few commands.
local field_of = {} -- of each grab the first ordinal's field; joined once, because joining is dear
for g = 1, #grabs do
  local grab = grabs[g]
  local s = state[grab[1]]
  if s then
    local fields, first = asked[grab[1]], '1:' .. grab[2]
    field_of[g] = first
    fields[#fields + 1] = first
    for ordinal = 2, s.limit do fields[#fields + 1] = ordinal .. ':' .. grab[2] end
  end
end
for i = 1, #drops do
  local fields = asked[i]
  for first = 1, #fields, READ_CHUNK do
    local last = math.min(first + READ_CHUNK - 1, #fields)
    local notes, held = redis.call('HMGET', KEYS[2 * i + 2], unpack(fields, first, last)), state[i].held
    for k = first, last do held[fields[k]] = notes[k - first + 1] end
  end
end

-- Decide. Nothing is written before every grab of the batch is decided.
local codes, notes, granted = {}, {}, {}
local function charge(rate, bursts)
  local ahead_us = rate.ahead_us + rate.interval_us
  if ahead_us > rate.burst_us * bursts + 0.5 then return false end -- half a us: sums of fractions
  rate.ahead_us = ahead_us
  return true
end
local function decide(index, grab)
  local s, holder, number = state[grab[1]], grab[2], grab[3]
  if not s then return 'F' end
  local held, field, free = s.held, field_of[index], nil
  local rate = rates[grab[6]]
  for ordinal = 1, s.limit do
    if ordinal > 1 then field = ordinal .. ':' .. holder end
    local note = held[field]
    if not note then
      free = free or ordinal
    elseif note == number then
      return rate and not charge(rate, REPEATED) and 'T' or 'P'
    elseif string.sub(note, 1, #number + 1) == number .. ' ' then
      if rate and not charge(rate, REPEATED) then return 'T' end
      return 'R', note
    end
  end
  if rate and not charge(rate, NEW) then return 'T' end
  if s.status == PAUSED then return 'Z' end
  if s.status == CLOSED or now_ms >= s.closes_ms then return 'E', string.format('%.0f', s.closes_ms) end
  if now_ms < s.opens_ms then return 'N', string.format('%.0f', s.opens_ms) end
  if not free then return 'L', held[field_of[index]] end
  if s.available - s.taken <= 0 then
    if s.pending + s.taken == 0 and s.issued >= s.quantity then return 'X' end
    return 'S'
  end
  if #granted >= room then return 'B' end
  field = free == 1 and field_of[index] or free .. ':' .. holder
  held[field] = number
  s.taken = s.taken + 1
  local written = s.written
  local last = #written
  written[last + 1], written[last + 2] = field, number
  granted[#granted + 1] = {grab[1], holder, number, free, index - 1, grab[4], grab[5]}
  return 'G'
end
for g = 1, #grabs do
  local code, note = decide(g, grabs[g])
  codes[g] = code
  if note then notes[#notes + 1] = note end
end

-- Write: holders, stock and the journal entry. No command below can fail but for memory, and
-- memory is refused at the first write, before anything has changed.
if #granted > 0 then
  redis.call('XADD', grants_key, '*', 'v', '1', 'o', origin, 't', string.format('%.0f', now_ms),
    'd', drops_bytes, 'g', cmsgpack.pack(granted))
  redis.call('HINCRBY', shard_key, 'backlog', #granted)
  for i = 1, #drops do
    local s = state[i]
    if s and s.taken > 0 then
      for first = 1, #s.written, READ_CHUNK do
        redis.call('HSET', KEYS[2 * i + 2],
          unpack(s.written, first, math.min(first + READ_CHUNK - 1, #s.written)))
      end
      redis.call('HSET', KEYS[2 * i + 1], 'available', s.available - s.taken,
        'pending', s.pending + s.taken)
    end
  end
end
for i = 1, #rates do
  local rate = rates[i]
  if rate.ahead_us > 0 and rate.ahead_us ~= rate.before_us then -- out of memory a rate is forgiven
    redis.pcall('SET', KEYS[2 * #drops + 2 + i], string.format('%.0f', now_us + math.ceil(rate.ahead_us)),
      'PX', math.ceil(rate.ahead_us / 1000))
  end
  notes[#notes + 1] = string.format('%.0f', rate.ahead_us)
end
return {table.concat(codes), unpack(notes)}
