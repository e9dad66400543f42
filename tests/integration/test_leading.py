"""Who leads: one at a time, and nobody who is not heard of."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from couponsvc.reconcile import leading
from couponsvc.reconcile.leading import Lead

SHORT_LEASE_MS = 150
END_LEADER = """
SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid = $1
"""


@pytest.fixture
async def lead(database: str) -> AsyncIterator[Callable[[], Lead]]:
    made: list[Lead] = []

    def make() -> Lead:
        made.append(Lead(database, 0, lease_ms=SHORT_LEASE_MS))
        return made[-1]

    yield make
    for one in made:
        await one.close()


async def until(claim: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(5):
        while not await claim():
            await asyncio.sleep(0.02)


async def test_the_lock_of_a_leader_that_is_silent_ends(
    lead: Callable[[], Lead], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is stopped by SIGSTOP: its connection is open, and nothing comes."""
    monkeypatch.setattr(leading, "BEAT_MS", 60_000)
    silent, other = lead(), lead()
    assert await silent.take()
    assert not await other.take()
    await until(other.take)
    assert not silent.held
    assert not await silent.take()


async def test_a_leader_that_is_heard_keeps_the_lock_past_its_lease(
    lead: Callable[[], Lead], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leading, "BEAT_MS", SHORT_LEASE_MS // 5)
    leader, other = lead(), lead()
    assert await leader.take()
    for _ in range(4):
        await asyncio.sleep(SHORT_LEASE_MS / 2_000)
        assert not await other.take()
    assert leader.held


async def test_a_leader_whose_session_was_ended_notices_and_takes_the_lock_again(
    lead: Callable[[], Lead], pool: "asyncpg.Pool[asyncpg.Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leading, "BEAT_MS", SHORT_LEASE_MS // 5)
    leader = lead()
    assert await leader.take()
    assert await pool.fetchval(END_LEADER, leading.LOCK_KEY)

    async def lost() -> bool:
        return not leader.held

    await until(lost)
    await until(leader.take)
