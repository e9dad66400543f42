"""The slowest confirmed grabs of an ordinary load, beside the slowest commits of a single row.

Half of what the service can do, in an open loop. The commits are those of one connection to the same
Postgres, one row each, during the very same seconds: both wait for the same disk and the same cores.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median
from time import perf_counter
from typing import Final, NamedTuple

import asyncpg

from bench.open_loop import OpenLoopResult, latency_of, run_apart
from bench.scale.rounds import (
    CONNECTIONS,
    FIRST_GUESS_PER_S,
    SPARE,
    WARM_UP_COUNT,
    WINDOW_S,
    WrongAnswers,
    closed_round,
    request_file,
)
from bench.scale.service import Service
from bench.targets import Say, TargetResult

NAME: Final = "p99 of confirmed, open loop at half of saturation : p99 of a single-row commit"
TARGET: Final = 6.0
LOAD: Final = 0.5
"""Of saturation."""
ROUNDS: Final = 3
ROUND_S: Final = 4.0
CREATED: Final = 201
COMMIT_EVERY_S: Final = 0.004
"""A breath between two commits, so that the yardstick does not become a load."""
QUIET_S: Final = 2.0
DROP_ID: Final = "at-half-load"
STOCK: Final = 1_000_000

Connection = asyncpg.Connection


class Measured(NamedTuple):
    """One round."""

    confirmed_p50_ms: float
    confirmed_p99_ms: float
    commit_p99_ms: float
    late_sends: int

    @property
    def ratio(self) -> float:
        """Of the two slowest."""
        return self.confirmed_p99_ms / self.commit_p99_ms


async def measure(service: Service, say: Say) -> TargetResult:
    """Find saturation, then load the service with half of it while one connection commits."""
    await service.define([(DROP_ID, STOCK, True)])
    await closed_round(service, [DROP_ID], "latency-warm-up", count=WARM_UP_COUNT)
    count = int(FIRST_GUESS_PER_S * WINDOW_S * SPARE)
    saturation = (await closed_round(service, [DROP_ID], "latency-saturation", count=count)).per_s
    async with _probe_table(service.dsn) as connection:
        quiet = latency_of(await _commit_for(connection, QUIET_S))
        rounds = [await _round(service, connection, saturation * LOAD, str(n)) for n in range(ROUNDS)]
    ratio = median(r.ratio for r in rounds)
    p50, p99 = median(r.confirmed_p50_ms for r in rounds), median(r.confirmed_p99_ms for r in rounds)
    detail = (
        f"at {saturation * LOAD:,.0f}/s p50 {p50:.1f} ms, p99 {p99:.1f} ms; commit p99"
        f" {median(r.commit_p99_ms for r in rounds):.2f} ms meanwhile, {quiet.p99_ms:.2f} ms before;"
        f" {sum(r.late_sends for r in rounds)} late sends"
    )
    say(f"latency: {detail}")
    return TargetResult(NAME, ratio, TARGET, at_least=False, unit="", detail=detail)


async def _round(
    service: Service, connection: "Connection[asyncpg.Record]", rate_per_s: float, seed: str
) -> Measured:
    count = int(rate_per_s * ROUND_S) + 1
    with request_file(service, [DROP_ID], count, f"latency-{seed}") as path:
        load = asyncio.create_task(
            run_apart(service.url, path, rate_per_s=rate_per_s, duration_s=ROUND_S, connections=CONNECTIONS)
        )
        commits_ms = await _commit_until(connection, load)
        result = load.result()
    _refuse_other_answers(result)
    await service.settled()
    latency = result.latency_by_status[CREATED]
    return Measured(latency.p50_ms, latency.p99_ms, latency_of(commits_ms).p99_ms, result.late_sends)


def _refuse_other_answers(result: OpenLoopResult) -> None:
    if result.unanswered or set(result.answered) != {CREATED}:
        raise WrongAnswers(f"{result.answered} answers, {result.unanswered} unanswered, all should be 201")


@asynccontextmanager
async def _probe_table(dsn: str) -> AsyncIterator["Connection[asyncpg.Record]"]:
    """A connection with a table of its own, which goes away with it."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            "CREATE TABLE bench_commits (place bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, code text)"
        )
        try:
            yield connection
        finally:
            await connection.execute("DROP TABLE bench_commits")
    finally:
        await connection.close()


async def _commit_until(
    connection: "Connection[asyncpg.Record]", load: "asyncio.Task[OpenLoopResult]"
) -> list[float]:
    """Commit rows one after the other while the load lasts; milliseconds of each."""
    insert = await connection.prepare("INSERT INTO bench_commits (code) VALUES ($1)")
    times_ms = []
    while not load.done():
        at = perf_counter()
        await insert.fetch("7QX2M9RKHTW4C")
        times_ms.append((perf_counter() - at) * 1e3)
        await asyncio.sleep(COMMIT_EVERY_S)
    return times_ms


async def _commit_for(connection: "Connection[asyncpg.Record]", seconds: float) -> list[float]:
    sleeping = asyncio.create_task(asyncio.sleep(seconds))
    return await _commit_until(connection, sleeping)  # type: ignore[arg-type]
