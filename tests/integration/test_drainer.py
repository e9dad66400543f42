"""The drainer on a real stream and a real ledger."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from redis.asyncio import Redis

from couponsvc.ledger.drainer import Drainer
from couponsvc.settings import Settings
from couponsvc.values.grab import Grab
from couponsvc.values.outcome import Outcome, Verdict
from tests.ledgers import Scene, listening


@pytest.fixture
async def scene(settings: Settings, pool: "asyncpg.Pool[asyncpg.Record]", redis: Redis) -> Scene:
    return Scene(settings, pool, redis)


@pytest.fixture
async def drainer(settings: Settings) -> AsyncIterator[Drainer]:
    drainer = await Drainer.open(settings)
    yield drainer
    await drainer.close()


def grabs(drop_no: int, count: int, prefix: str = "p") -> list[Grab]:
    return [Grab(drop_no, f"1:{prefix}{i}", f"{prefix}-n{i}", "app", "370200") for i in range(count)]


async def test_grants_become_vouchers_with_events_and_confirmations(scene: Scene, drainer: Drainer) -> None:
    drop = await scene.add_drop(quantity=10)
    async with listening(scene.redis) as heard:
        assert (
            await scene.grab(*grabs(drop.drop_no, 12))
            == [Outcome.GRANTED] * 10 + [Outcome.SOLD_OUT_PENDING] * 2
        )
        counts = await drainer.run_once()
        await asyncio.sleep(0.05)
    assert (counts.entries, counts.grants, counts.committed, counts.acknowledged) == (1, 10, 10, 1)
    assert [(c.place, c.verdict, c.seq) for c in heard[1]] == [
        (i, Verdict.COMMITTED, i + 1) for i in range(10)
    ]
    await scene.check_drained(drop)
    assert await scene.grab(*grabs(drop.drop_no, 1)) == [Outcome.REPEATED]
    assert await scene.grab(*grabs(drop.drop_no, 1, "late")) == [Outcome.SOLD_OUT]
