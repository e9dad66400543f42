-- One grab: decode, run the script over a kept-open connection, answer.
local cjson = require 'cjson.safe'
local redis = require 'nginx.redis'

local REFUSALS = {[-1] = 'sold_out', [-2] = 'person_limit'}

local function problem(status, code)
  ngx.status = status
  ngx.header.content_type = 'application/problem+json'
  local body = '{"type":"/problems/' .. code .. '","status":' .. status .. ',"code":"' .. code .. '"}'
  ngx.header.content_length = #body
  ngx.print(body)
end

ngx.req.read_body()
local grab = cjson.decode(ngx.req.get_body_data() or '')
if type(grab) ~= 'table' or not grab.person_token or not grab.out_request_no then
  return problem(422, 'invalid_request')
end

local drop = ngx.var.drop
local line = redis:new()
line:set_timeout(5000)
local connected = line:connect('127.0.0.1', settings.port)
if connected and line:get_reused_times() == 0 then connected = line:auth(settings.password) end
if not connected then return problem(503, 'gate_unavailable') end

local function run(command, script)
  return line[command](line, script, 3, 'stock:' .. drop, 'persons:' .. drop, 'grants:' .. drop,
    grab.person_token, grab.out_request_no, grab.channel or '', grab.region or '')
end
local left, why = run('evalsha', settings.sha)
if not left and why and why:find('NOSCRIPT', 1, true) then left = run('eval', settings.script) end
line:set_keepalive(60000, 256)

if not left then return problem(503, 'gate_unavailable') end
if REFUSALS[left] then return problem(409, REFUSALS[left]) end
local body = cjson.encode({status = 'pending', drop_id = drop, out_request_no = grab.out_request_no})
ngx.status = 202
ngx.header.content_length = #body
ngx.print(body)
