"""The holders of drops: read from Postgres in portions, compared with Redis note by note.

A portion is at most `limits.LOAD_CHUNK_COUNT` vouchers: a piece of one large drop, or all of many small
ones. Each is a statement of its own, and none sees the snapshot of another. That is enough: vouchers
are never changed or removed, and a drop's numbers only grow.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Final, NamedTuple

import asyncpg
from redis.asyncio import Redis

from couponsvc import limits
from couponsvc.reconcile.judging import Finding, Kind
from couponsvc.reconcile.snapshot import QUERIES, LedgerSide, Pool
from couponsvc.support.bulk import BulkConnection
from couponsvc.support.ending import end_tasks
from couponsvc.values import keys

LAST_POSSIBLE_SEQ: Final = 2**31 - 1
"""The last piece of a drop has no end: a voucher beyond what Postgres says it issued must be seen."""

Pairs = tuple[int, list[bytes]]
"""A `drop_no`, and holders of it: `field, note, field, note, …`."""


class HolderDrift(NamedTuple):
    """How the vouchers of Postgres compare with the holders of Redis (invariant I8)."""

    row_count: int
    """Vouchers in Postgres."""
    missing: int
    """Vouchers whose field is not there."""
    differing: int
    """Vouchers whose field says something else."""

    def findings(self) -> list[Finding]:
        """What is wrong, if anything."""
        if not (self.missing or self.differing):
            return []
        detail = f"of {self.row_count} vouchers {self.missing} have no holder, {self.differing} another note"
        return [Finding(Kind.HOLDERS, self.missing + self.differing, detail)]


async def stream_holders(
    pool: "Pool[asyncpg.Record]", sides: Sequence[LedgerSide], after_seqs: Mapping[int, int] | None = None
) -> AsyncGenerator[list[Pairs], None]:
    """The holders of drops' vouchers, in portions; a drop without any may be missing.

    While a portion is in use the next one is fetched. Close it (`contextlib.aclosing`) where the
    last portion may not be reached.

    Args:
        pool: Of the ledger.
        sides: The drops; the numbers up to `issued` are read, and whatever is beyond.
        after_seqs: By `drop_no`, up to which number vouchers are left out; missing: none is.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked.
    """
    spans = [(side.drop.drop_no, (after_seqs or {}).get(side.drop.drop_no, 0), side.issued) for side in sides]
    async with pool.acquire() as connection:
        fetching: asyncio.Future[list[asyncpg.Record]] | None = None
        try:
            for portion in _portions(spans):
                columns = [list(column) for column in zip(*portion, strict=True)]
                rows = await fetching if fetching else None
                fetching = asyncio.ensure_future(
                    connection.fetch(QUERIES["read_holders"], *columns, 2 * limits.LOAD_CHUNK_COUNT)
                )
                if rows:
                    yield _pairs(rows)
            if fetching and (rows := await fetching):
                yield _pairs(rows)
        finally:
            await end_tasks(fetching)


def _portions(spans: Sequence[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """Cut `(drop_no, after_seq, issued)` into pieces, and put pieces together to portions."""
    portion: list[tuple[int, int, int]] = []
    room = limits.LOAD_CHUNK_COUNT
    for drop_no, after_seq, issued in spans:
        first = after_seq
        while True:
            last = min(first + room, issued)
            portion.append((drop_no, first, last if last < issued else LAST_POSSIBLE_SEQ))
            room -= max(last - first, 1)  # a look-up that finds nothing is work, too
            if room <= 0:
                yield portion
                portion, room = [], limits.LOAD_CHUNK_COUNT
            if last >= issued:
                break
            first = last
    if portion:
        yield portion


def _pairs(rows: "Sequence[asyncpg.Record]") -> list[Pairs]:
    return [(drop_no, lines.split(b"\n")) for drop_no, lines in rows if lines is not None]


async def compare_holders(
    pool: "Pool[asyncpg.Record]",
    redis: Redis,
    sides: Sequence[LedgerSide],
    *,
    at_rest: bool,
    after_seqs: Mapping[int, int] | None = None,
) -> dict[int, HolderDrift]:
    """Look up every voucher of some drops of a shard among the holders of Redis.

    At rest a note must be the committed one; in motion it may still be the pending one, because
    an acknowledgement follows its commit.

    Args:
        pool: Of the ledger.
        redis: The shard's server.
        sides: The drops, as read from Postgres.
        at_rest: Whether they all are.
        after_seqs: See `stream_holders`.

    Returns:
        By `drop_no`, of every drop.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: one of the
            two cannot be asked.
    """
    drifts = {side.drop.drop_no: HolderDrift(0, 0, 0) for side in sides}
    names = {
        side.drop.drop_no: keys.holders_key(side.drop.shard, side.drop.drop_no, side.drop.epoch)
        for side in sides
    }
    async with BulkConnection(redis) as bulk, aclosing(stream_holders(pool, sides, after_seqs)) as portions:
        async for portion in portions:
            await bulk.send_all([("HMGET", names[drop_no], *pairs[::2]) for drop_no, pairs in portion])
            for drop_no, pairs in portion:
                drift = _compare(await bulk.reply(), pairs[1::2], at_rest=at_rest)
                drifts[drop_no] = HolderDrift(*map(sum, zip(drifts[drop_no], drift, strict=True)))
    return drifts


def _compare(found: Sequence[bytes | None], expected: Sequence[bytes], *, at_rest: bool) -> HolderDrift:
    missing = differing = 0
    if found != expected:
        for note, wanted in zip(found, expected, strict=True):
            if note is None:
                missing += 1
            elif note != wanted and (at_rest or note != wanted.split(b" ", 1)[0]):
                differing += 1
    return HolderDrift(len(expected), missing, differing)
