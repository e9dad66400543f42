"""Looks at drops from both sides: Redis, then Postgres, then Redis again."""

from collections.abc import Collection
from typing import Final, NamedTuple

import asyncpg
from redis.asyncio import Redis

from couponsvc.reconcile.judging import Finding, is_loaded, judge_at_rest, judge_in_motion
from couponsvc.reconcile.snapshot import GateSide, LedgerSide, Pool, read_gate, read_ledger

FIRST_EPOCH: Final = 1
"""Of a drop that was never rebuilt (default of the column)."""


class Look(NamedTuple):
    """One drop between two atomic reads of Redis."""

    before: GateSide
    ledger: LedgerSide
    after: GateSide
    epoch_moved: bool
    """The epoch was raised during the look: it says nothing."""

    @property
    def drop_no(self) -> int:
        """Of the drop."""
        return self.ledger.drop.drop_no

    @property
    def loaded(self) -> bool:
        """Whether the drop can be open in Redis."""
        return is_loaded(self.after, self.ledger.drop)

    @property
    def never_open(self) -> bool:
        """Whether nothing of the drop was ever anywhere: it may be opened under its first epoch."""
        drop = self.ledger.drop
        return self.after.published == 0 and self.ledger.issued == 0 and drop.epoch == FIRST_EPOCH

    @property
    def behind(self) -> bool:
        """Whether Redis holds an older definition than Postgres."""
        state = self.before.state
        return state is not None and state.version < self.ledger.drop.version

    @property
    def ahead(self) -> bool:
        """Whether Redis holds a newer definition: an operator is taking units from stock just now."""
        state = self.before.state
        return state is not None and state.version > self.ledger.drop.version

    @property
    def at_rest(self) -> bool:
        """Whether nothing was pending and nothing moved: then the comparison is exact."""
        state = self.before.state
        return state is not None and state.pending == 0 and self.before == self.after and not self.epoch_moved

    def judge(self) -> list[Finding]:
        """Every way in which the two sides disagree, as exactly as this look allows."""
        if self.epoch_moved:
            return []
        if self.at_rest:
            return judge_at_rest(self.before, self.ledger)
        return judge_in_motion(self.before, self.ledger, self.after)


async def take_looks(
    pool: "Pool[asyncpg.Record]", redis: Redis, shard: int, drop_nos: Collection[int] | None = None
) -> list[Look]:
    """Look at the named drops of a shard, or at all of them: four round trips together.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: one of the
            two cannot be asked.
    """
    drops = [side.drop for side in await read_ledger(pool, shard, drop_nos)]
    before = await read_gate(redis, drops)
    ledger = {side.drop.drop_no: side for side in await read_ledger(pool, shard, [d.drop_no for d in drops])}
    after = await read_gate(redis, drops)
    return [
        Look(b, ledger[drop.drop_no], a, ledger[drop.drop_no].drop.epoch != drop.epoch)
        for b, drop, a in zip(before, drops, after, strict=True)
        if drop.drop_no in ledger
    ]


async def take_look(pool: "Pool[asyncpg.Record]", redis: Redis, shard: int, drop_no: int) -> Look:
    """Look at one drop. See `take_looks`."""
    return (await take_looks(pool, redis, shard, [drop_no]))[0]
