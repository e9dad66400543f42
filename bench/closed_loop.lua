--[[
closed_loop: wrk's side of a round. Sends prepared requests in order, each once, and ends without
leaving one behind.

Why not wrk's own way: at the end of its time wrk hangs up on requests in flight, which are then
decided without being counted, so that no count of vouchers could be compared exactly. Here the
script notices that the time is over, hands out empty requests instead (a connection that gets one
rests), and interrupts wrk as soon as every connection rests.

Why no response(): with that hook wrk builds a table of headers per answer, which costs it a fifth
of its rate. Answers of status 400 and above are counted by wrk itself; which ones they were is
read from the service afterwards.

Why one buffer: LuaJIT finds equal strings by a hash of a few of their bytes. Requests that differ in
one number only share their hash, and making strings of them takes time with the square of their count.
So the file stays one string, and each request is copied over the bytes of one string of its length,
which wrk copies away before the next.

ARGUMENTS (after --): file of requests, connections, ramp in s, window in s
PRINTS    one line, BENCH and JSON: see bench/closed_loop.py
]]
local ffi = require("ffi")
ffi.cdef([[
  typedef struct { long sec; long nsec; } bench_time;
  int clock_gettime(int clock, bench_time *time);
  int getpid(void);
  int kill(int pid, int number);
]])
local CLOCK_MONOTONIC, CLOCK_PROCESS_CPU, SIGINT = 1, 2, 2
local C, moment = ffi.C, ffi.new("bench_time")

local LENGTH_DIGITS = 8
local text, bytes -- the whole file, anchored, and where it is
local starts, lengths, slots, targets = {}, {}, {}, {}
local connections, ramp_s, window_s
local opens_at, ends_at
-- Read by done() through thread:get, hence global.
sent_count, at_open, at_end, open_s, end_s, ran_out, cpu_at_s = -1, 0, 0, 0, 0, 0, 0
local resting = 0

local function now_s(clock)
  C.clock_gettime(clock, moment)
  return tonumber(moment.sec) + tonumber(moment.nsec) * 1e-9
end

function init(arguments)
  connections, ramp_s, window_s = tonumber(arguments[2]), tonumber(arguments[3]), tonumber(arguments[4])
  local file = assert(io.open(arguments[1], "rb"))
  text = file:read("*a")
  file:close()
  bytes = ffi.cast("const char *", text)
  local at = 0
  while at < #text do
    local length = tonumber(text:sub(at + 1, at + LENGTH_DIGITS))
    starts[#starts + 1], lengths[#lengths + 1] = at + LENGTH_DIGITS, length
    if not slots[length] then
      slots[length] = string.rep("-", length)
      targets[length] = ffi.cast("char *", ffi.cast("const char *", slots[length]))
    end
    at = at + LENGTH_DIGITS + length
  end
  collectgarbage("stop") -- nothing is made from here on
end

local function take(place)
  local length = lengths[place]
  ffi.copy(targets[length], bytes + starts[place], length)
  return slots[length]
end

local function finish(at_s)
  at_end, end_s = sent_count, at_s
  if open_s == 0 then at_open, open_s = at_end, at_s end -- over within the ramp: no window at all
end

function request()
  if sent_count < 0 then -- wrk looks at the first request once before it sends any
    sent_count = 0
    return take(1)
  end
  local at_s = now_s(CLOCK_MONOTONIC)
  if not opens_at then
    opens_at = at_s + ramp_s
    ends_at = opens_at + window_s
    cpu_at_s = now_s(CLOCK_PROCESS_CPU) -- reading the requests is behind us
  end
  if open_s == 0 and at_s >= opens_at then at_open, open_s = sent_count, at_s end
  if end_s == 0 then
    if at_s >= ends_at then
      finish(at_s)
    elseif sent_count == #starts then
      ran_out = 1
      finish(at_s)
    end
  end
  if end_s > 0 then
    resting = resting + 1
    if resting == connections then C.kill(C.getpid(), SIGINT) end
    return ""
  end
  sent_count = sent_count + 1
  return take(sent_count)
end

local threads = {}

function setup(thread)
  threads[#threads + 1] = thread
end

function done(summary, latency)
  local thread = threads[1]
  local errors = summary.errors
  local figures = {
    sent = thread:get("sent_count"), at_open = thread:get("at_open"), at_end = thread:get("at_end"),
    answered = summary.requests, status_400_up = errors.status,
    broken = errors.connect + errors.read + errors.write, ran_out = thread:get("ran_out"),
  }
  local parts = {}
  for name, value in pairs(figures) do parts[#parts + 1] = string.format('"%s": %d', name, value) end
  parts[#parts + 1] = string.format('"window_s": %.6f', thread:get("end_s") - thread:get("open_s"))
  parts[#parts + 1] = string.format('"cpu_s": %.6f', now_s(CLOCK_PROCESS_CPU) - thread:get("cpu_at_s"))
  for _, share in ipairs({ 50, 90, 99 }) do
    parts[#parts + 1] = string.format('"p%d_ms": %.3f', share, latency:percentile(share) / 1000)
  end
  io.write("BENCH {" .. table.concat(parts, ", ") .. "}\n")
end
