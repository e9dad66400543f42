-- Read once, before the worker is forked: the script and where Redis is.
settings = {
  port = tonumber(os.getenv('REDIS_PORT')),
  password = os.getenv('REDIS_PASSWORD'),
}
local file = assert(io.open(os.getenv('SCRIPT')))
settings.script = file:read('*a')
file:close()
settings.sha = ngx.sha1_bin(settings.script):gsub('.', function(c) return ('%02x'):format(c:byte()) end)
