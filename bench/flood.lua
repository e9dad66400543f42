--[[
flood: wrk's side of a partner that asks as fast as it is answered. Sends prepared requests in order,
and begins anew when they ran out, until wrk's own time is over.

ARGUMENTS (after --): file of requests, as bench/request_file.py writes them
]]
local LENGTH_DIGITS = 8
local requests, sent_count = {}, 0

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  local text = file:read("*a")
  file:close()
  local at = 1
  while at <= #text do
    local length = tonumber(text:sub(at, at + LENGTH_DIGITS - 1))
    at = at + LENGTH_DIGITS
    requests[#requests + 1] = text:sub(at, at + length - 1)
    at = at + length
  end
end

function request()
  sent_count = sent_count + 1
  return requests[(sent_count - 1) % #requests + 1]
end
