"""The eight alternatives as the harness sees them: level, start, requests, invariants."""

# ruff: noqa: D102 - the interface (bench/contender.py) says what each method does

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar, Final
from urllib.parse import urlsplit

from bench.contender import Contender, Engines, Level, Running
from bench.contenders import checks
from bench.contenders.contract import raw_requests
from bench.contenders.serving import ContenderFailed, scratch, serving, uvicorn_serving
from couponsvc.engines.engine import free_port

HERE: Final = Path(__file__).parent
QUEUED_SCRIPT: Final = HERE / "lua" / "queued.lua"
GO_SOURCES: Final = Path("/usr/share/gocode")
NGINX_MODULES: Final = Path("/usr/lib/nginx/modules")
TICKETS_COUNT: Final = 250_000
"""One row each, so no more than a run takes: at 10,000 a second they last for 25 s."""


class _Alternative(Contender):
    """What all of them have in common."""

    uses_redis: ClassVar[bool] = False
    uses_postgres: ClassVar[bool] = False

    def missing(self) -> str | None:
        return None

    def requests(self, round_no: int, count: int) -> Iterable[bytes]:
        return raw_requests(round_no, count)


class _Python(_Alternative):
    """Served by uvicorn."""

    app: ClassVar[str]
    factory: ClassVar[bool] = True

    async def prepare(self, engines: Engines) -> None:
        """Make schema and stock."""

    @asynccontextmanager
    async def running(self, engines: Engines, directory: Path) -> AsyncIterator[Running]:
        await self.prepare(engines)
        environment = {"REDIS_URL": engines.redis_url, "POSTGRES_DSN": engines.postgres_dsn}
        async with uvicorn_serving(self.app, directory, environment, factory=self.factory) as running:
            yield running


class RawAsgi(_Python):
    """1: see raw_asgi.py."""

    name, title, level = "raw-asgi", "Raw ASGI echo (uvicorn)", Level.NOTHING
    app, factory = "raw_asgi:app", False

    async def invariants(self, engines: Engines, answered_2xx: int) -> list[str]:  # noqa: ARG002
        return []


class FastApiEcho(RawAsgi):
    """2: see fastapi_echo.py."""

    name, title = "fastapi-echo", "FastAPI echo (pydantic body)"
    app = "fastapi_echo:app"


class UsualService(_Python):
    """3: see usual_service.py."""

    name, title, level = "usual-service", "The usual: FastAPI, redis-py, asyncpg", Level.COMMITTED
    uses_redis, uses_postgres = True, True
    app = "usual_service:create_app"

    async def prepare(self, engines: Engines) -> None:
        await checks.stock_redis(engines)
        await checks.make_tables(engines)

    async def invariants(self, engines: Engines, answered_2xx: int) -> list[str]:
        async def look() -> list[str]:
            taken, noted = await checks.redis_counts(engines)
            vouchers = (await checks.ledger(engines))["vouchers"]
            return [
                *checks.differing("units taken", taken, "vouchers", vouchers),
                *checks.differing("persons noted", noted, "vouchers", vouchers),
                *await checks.ledger_violations(engines, answered_2xx, "vouchers"),
            ]

        return await checks.patiently(look)


class PostgresUpdate(_Python):
    """4: see postgres_update.py."""

    name, title, level = "postgres-update", "Postgres only: UPDATE + INSERT", Level.COMMITTED
    uses_postgres = True
    app = "postgres_update:create_app"

    async def prepare(self, engines: Engines) -> None:
        await checks.make_tables(engines)

    async def invariants(self, engines: Engines, answered_2xx: int) -> list[str]:
        return await checks.patiently(lambda: checks.ledger_violations(engines, answered_2xx, "counted"))


class PostgresTickets(_Python):
    """5: see postgres_tickets.py."""

    name, title, level = "postgres-tickets", "Postgres only: SKIP LOCKED tickets", Level.COMMITTED
    uses_postgres = True
    app = "postgres_tickets:create_app"

    async def prepare(self, engines: Engines) -> None:
        await checks.make_tables(engines, TICKETS_COUNT)

    async def invariants(self, engines: Engines, answered_2xx: int) -> list[str]:
        async def look() -> list[str]:
            counts = await checks.ledger(engines)
            taken = TICKETS_COUNT - counts["tickets"]
            return [
                *checks.differing("tickets taken", taken, "vouchers", counts["vouchers"]),
                *await checks.ledger_violations(engines, answered_2xx, "vouchers"),
            ]

        return await checks.patiently(look)


class _Queued(_Alternative):
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


ALTERNATIVES: Final[tuple[Contender, ...]] = (
    RawAsgi(),
    FastApiEcho(),
    UsualService(),
    PostgresUpdate(),
    PostgresTickets(),
    FastifyIoredis(),
    GoRedigo(),
    NginxLua(),
)
