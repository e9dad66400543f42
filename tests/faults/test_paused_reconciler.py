"""A reconciler that is stopped leads no more: another one opens the gate after a restart of Redis."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic

import asyncpg
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from couponsvc.reconcile.check import check
from couponsvc.reconcile.identity import read_blessing, read_identity
from couponsvc.reconcile.snapshot import Pool
from couponsvc.settings import Settings
from tests.integration.scene import drop_now, grab, issue, make_drop, published
from tests.servers import RedisServer

pytestmark = pytest.mark.faults

START_PATIENCE_S = 20.0
TAKE_OVER_PATIENCE_S = 15.0


class Reconcilers:
    """Two real processes, one of which leads."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("COUPONSVC_")},
            "COUPONSVC_REDIS_URL": settings.redis_url,
            "COUPONSVC_POSTGRES_DSN": settings.postgres_dsn.get_secret_value(),
            "COUPONSVC_MASTER_KEY": settings.master_key.get_secret_value(),
        }
        self.logs = [directory / f"reconcile{place}.log" for place in range(2)]
        self.processes = []
        for log in self.logs:
            with log.open("wb") as output:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "couponsvc", "reconcile"],
                        stdout=output, stderr=output, env=environment,
                    )
                )  # fmt: skip

    def leader(self) -> "subprocess.Popen[bytes] | None":
        """The only one that has led so far; None before."""
        led = [
            process
            for process, log in zip(self.processes, self.logs, strict=True)
            if b"leads" in log.read_bytes()
        ]
        return led[0] if led else None

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def reconcilers(settings: Settings, tmp_path: Path) -> Iterator[Reconcilers]:
    started = Reconcilers(settings, tmp_path)
    yield started
    started.end()


async def until_blessed(pool: "Pool[asyncpg.Record]", redis: Redis, patience_s: float) -> float:
    """Seconds until the server that answers now was blessed."""
    began = monotonic()
    async with asyncio.timeout(patience_s):
        while True:
            with suppress(RedisError, OSError):
                if await read_blessing(pool, 0) == await read_identity(redis):
                    return monotonic() - began
            await asyncio.sleep(0.05)


async def test_another_one_blesses_while_the_leader_is_stopped_and_its_return_harms_nothing(
    pool: "Pool[asyncpg.Record]",
    redis: Redis,
    redis_server: RedisServer,
    reconcilers: Reconcilers,
) -> None:
    drop = await make_drop(pool)
    await issue(pool, drop, 4)
    await until_blessed(pool, redis, START_PATIENCE_S)
    leader = reconcilers.leader()
    assert leader is not None
    leader.send_signal(signal.SIGSTOP)
    redis_server.restart(keep_data=False)
    await until_blessed(pool, redis, TAKE_OVER_PATIENCE_S)
    async with asyncio.timeout(START_PATIENCE_S):
        while await published(redis, drop := await drop_now(pool, drop.drop_no)) != drop.epoch:
            await asyncio.sleep(0.05)

    leader.send_signal(signal.SIGCONT)
    await asyncio.sleep(2)  # time for what it had in hand, and for it to notice
    assert leader.poll() is None
    assert b"leads no more" in reconcilers.logs[reconcilers.processes.index(leader)].read_bytes()
    assert (await drop_now(pool, drop.drop_no)).epoch == drop.epoch
    assert await grab(redis, drop, "p-1") == "L"
    assert [(line.issued, line.drift) for line in await check(pool, redis)] == [(4, 0)]
