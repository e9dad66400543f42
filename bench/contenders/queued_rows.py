"""The alternatives that are no Python: Fastify, Go, nginx. All stop at a queue in Redis (level C)."""

# ruff: noqa: D102 - the interface (bench/contender.py) says what each method does

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from bench.contender import Engines, Level, Running
from bench.contenders import checks
from bench.contenders.rows import Alternative
from bench.contenders.serving import ContenderFailed, scratch, serving
from couponsvc.engines.engine import free_port

HERE: Final = Path(__file__).parent
QUEUED_SCRIPT: Final = HERE / "lua" / "queued.lua"
GO_SOURCES: Final = Path("/usr/share/gocode")
NGINX_MODULES: Final = Path("/usr/lib/nginx/modules")


class _Queued(Alternative):
    """Level C: one script, one stream."""

    level = Level.QUEUED
    uses_redis = True

    async def invariants(self, engines: Engines, answered_2xx: int) -> list[str]:
        return await checks.patiently(lambda: checks.queue_violations(engines, answered_2xx))


class FastifyIoredis(_Queued):
    """6: see fastify/server.js."""

    name, title = "fastify", "Fastify + ioredis Lua"

    def missing(self) -> str | None:
        if shutil.which("node") is None:
            return "Node is missing: apt-get install nodejs npm"
        if not all((HERE / "fastify" / "node_modules" / name).is_dir() for name in ("fastify", "ioredis")):
            return "its packages are missing: apt-get install npm; npm ci --prefix bench/contenders/fastify"
        return None

    @asynccontextmanager
    async def running(self, engines: Engines, directory: Path) -> AsyncIterator[Running]:
        await checks.stock_redis(engines)
        environment = {"REDIS_URL": engines.redis_url, "NODE_ENV": "production"}
        command = ["node", str(HERE / "fastify" / "server.js")]
        async with (
            scratch(directory) as place,
            serving(command, free_port(), place, environment) as running,
        ):
            yield running


class GoRedigo(_Queued):
    """7: see go/main.go."""

    name, title = "go", "Go net/http + redigo"

    def missing(self) -> str | None:
        if shutil.which("go") is None:
            return "Go is missing: apt-get install golang-go golang-github-gomodule-redigo-dev"
        if not (GO_SOURCES / "src/github.com/gomodule/redigo").is_dir():
            return "redigo is missing: apt-get install golang-github-gomodule-redigo-dev"
        return None

    @asynccontextmanager
    async def running(self, engines: Engines, directory: Path) -> AsyncIterator[Running]:
        await checks.stock_redis(engines)
        environment = {"REDIS_URL": engines.redis_url, "SCRIPT": str(QUEUED_SCRIPT)}
        async with scratch(directory) as place:
            binary = place / "server"
            await _build(HERE / "go" / "main.go", binary)
            async with serving([binary], free_port(), place, environment) as running:
                yield running


class NginxLua(_Queued):
    """8: see nginx/nginx.conf and nginx/grab.lua."""

    name, title = "nginx", "nginx + Lua + Redis"

    def missing(self) -> str | None:
        if _nginx() is None:
            packages = "nginx-light libnginx-mod-http-lua lua-nginx-redis lua-cjson"
            return f"nginx is missing: apt-get install {packages}"
        if not (NGINX_MODULES / "ngx_http_lua_module.so").is_file():
            return "nginx has no Lua: apt-get install libnginx-mod-http-lua"
        if not Path("/usr/share/lua/5.1/nginx/redis.lua").is_file():
            return "nginx' Redis client is missing: apt-get install lua-nginx-redis"
        if not list(Path("/usr/lib").glob("*/lua/5.1/cjson.so")):
            return "JSON for Lua is missing: apt-get install lua-cjson"
        return None

    @asynccontextmanager
    async def running(self, engines: Engines, directory: Path) -> AsyncIterator[Running]:
        await checks.stock_redis(engines)
        address, port = urlsplit(engines.redis_url), free_port()
        environment = {
            "REDIS_PORT": str(address.port),
            "REDIS_PASSWORD": address.password or "",
            "SCRIPT": str(QUEUED_SCRIPT),
        }
        words = {
            "modules": str(NGINX_MODULES),
            "user": "user root;" if os.geteuid() == 0 else "",  # else root's worker would be `nobody`
            "here": str(HERE / "nginx"),
            "port": str(port),
        }
        text = (HERE / "nginx" / "nginx.conf").read_text("utf-8")
        for word, value in words.items():
            text = text.replace(f"@{word}@", value)
        async with scratch(directory) as place:
            (place / "nginx.conf").write_text(text, "utf-8")
            command = [_nginx() or "nginx", "-p", str(place), "-c", "nginx.conf", "-e", "stderr"]
            async with serving(command, port, place, environment) as running:
                yield running


async def _build(source: Path, binary: Path) -> None:
    go = await asyncio.create_subprocess_exec(
        *("go", "build", "-o", binary, source),
        env={**os.environ, "GO111MODULE": "off", "GOPATH": str(GO_SOURCES)},
        stderr=subprocess.PIPE,
    )
    _, errors = await go.communicate()
    if go.returncode:
        raise ContenderFailed(f"it does not build: {errors.decode(errors='replace')}")


def _nginx() -> str | None:
    return shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
