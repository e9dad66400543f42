-- One grab: decode, run the script over a kept-open connection, answer. Loaded once, before the
-- worker is forked; nothing is compiled or made per request but what the request needs.
local cjson = require 'cjson.safe'
local redis = require 'nginx.redis'

local ngx, decode, encode = ngx, cjson.decode, cjson.encode
local PORT, PASSWORD = tonumber(os.getenv('REDIS_PORT')), os.getenv('REDIS_PASSWORD')
local REFUSALS = {[-1] = 'sold_out', [-2] = 'person_limit'}

local file = assert(io.open(os.getenv('SCRIPT')))
local SCRIPT = file:read('*a')
file:close()
local SHA = ngx.sha1_bin(SCRIPT):gsub('.', function(c) return ('%02x'):format(c:byte()) end)

local function answer(status, body)
  ngx.status = status
  ngx.header.content_length = #body
  ngx.print(body)
end

local function problem(status, code)
  ngx.header.content_type = 'application/problem+json'
  answer(status, '{"type":"/problems/' .. code .. '","status":' .. status .. ',"code":"' .. code .. '"}')
end

local function take(drop, grab)
  local line = redis:new()
  line:set_timeout(5000)
  local connected = line:connect('127.0.0.1', PORT)
  if connected and line:get_reused_times() == 0 then connected = line:auth(PASSWORD) end
  if not connected then return nil end
  local stock, persons, grants = 'stock:' .. drop, 'persons:' .. drop, 'grants:' .. drop
  local person, number, channel, region =
    grab.person_token, grab.out_request_no, grab.channel or '', grab.region or ''
  local left, why = line:evalsha(SHA, 3, stock, persons, grants, person, number, channel, region)
  if not left and why and why:find('NOSCRIPT', 1, true) then
    left = line:eval(SCRIPT, 3, stock, persons, grants, person, number, channel, region)
  end
  line:set_keepalive(60000, 512)
  return left
end

return function()
  ngx.req.read_body()
  local grab = decode(ngx.req.get_body_data() or '')
  if type(grab) ~= 'table' or not grab.person_token or not grab.out_request_no then
    return problem(422, 'invalid_request')
  end
  local drop = ngx.var.drop
  local left = take(drop, grab)
  if not left then return problem(503, 'gate_unavailable') end
  if REFUSALS[left] then return problem(409, REFUSALS[left]) end
  answer(202, encode({status = 'pending', drop_id = drop, out_request_no = grab.out_request_no}))
end
