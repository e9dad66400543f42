"""The alternatives in Python as the harness sees them: level, start, requests, invariants."""

# ruff: noqa: D102 - the interface (bench/contender.py) says what each method does

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar, Final

from bench.contender import Contender, Engines, Level, Running
from bench.contenders import checks
from bench.contenders.contract import raw_requests
from bench.contenders.serving import uvicorn_serving

TICKETS_COUNT: Final = 250_000
"""One row each, so no more than a run takes: at 10,000 a second they last for 25 s."""


class Alternative(Contender):
    """What all of them have in common."""

    uses_redis: ClassVar[bool] = False
    uses_postgres: ClassVar[bool] = False

    def missing(self) -> str | None:
        return None

    def requests(self, round_no: int, count: int) -> Iterable[bytes]:
        return raw_requests(round_no, count)


class _Python(Alternative):
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


class UsualServiceTuned(UsualService):
    """3, tuned beyond the usual: see usual_service.py."""

    name, title = "usual-service-tuned", "The usual, both rows in one statement"
    app = "usual_service_tuned:create_app"


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
