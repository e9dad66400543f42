"""The holders of a drop: streamed from Postgres in chunks, compared with Redis note by note."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import NamedTuple

import asyncpg
from redis.asyncio import Redis

from couponsvc import limits
from couponsvc.reconcile.snapshot import QUERIES, Pool
from couponsvc.support.bulk import BulkConnection
from couponsvc.values import keys
from couponsvc.values.drop import Drop
from couponsvc.values.grab import holder_of
from couponsvc.values.note import holder_field, write_note


class HolderDrift(NamedTuple):
    """How the vouchers of Postgres compare with the holders of Redis (invariant I8)."""

    row_count: int
    """Vouchers in Postgres."""
    missing: int
    """Vouchers whose field is not there."""
    differing: int
    """Vouchers whose field says something else."""


async def stream_holders(
    pool: "Pool[asyncpg.Record]", drop_no: int, after_seq: int = 0
) -> AsyncGenerator[list[str], None]:
    """The holders of a drop's vouchers, in chunks of `field, note, field, note, …`.

    All chunks are of one snapshot of Postgres; vouchers up to number `after_seq` are left out.
    While a chunk is in use the next one is fetched. Close it (`contextlib.aclosing`) where the
    last chunk may not be reached.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked.
    """
    async with (
        pool.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        cursor = await connection.cursor(QUERIES["stream_vouchers"], drop_no, after_seq)
        fetching = asyncio.ensure_future(cursor.fetch(limits.LOAD_CHUNK_COUNT))
        try:
            while rows := await fetching:
                fetching = asyncio.ensure_future(cursor.fetch(limits.LOAD_CHUNK_COUNT))
                yield _chunk(rows)
        finally:
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)


def _chunk(rows: "list[asyncpg.Record]") -> list[str]:
    chunk: list[str] = []
    for ordinal, partner_no, person_token, out_request_no, seq, issued_ms, code in rows:
        chunk.append(holder_field(ordinal, holder_of(partner_no, person_token)))
        chunk.append(write_note(out_request_no, seq, issued_ms, code))
    return chunk


async def compare_holders(
    pool: "Pool[asyncpg.Record]", redis: Redis, drop: Drop, *, at_rest: bool, after_seq: int = 0
) -> HolderDrift:
    """Look up every voucher of Postgres after number `after_seq` among the holders of Redis.

    At rest a note must be the committed one; in motion it may still be the pending one, because
    an acknowledgement follows its commit.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: one of the
            two cannot be asked.
    """
    key = keys.holders_key(drop.shard, drop.drop_no, drop.epoch)
    row_count = missing = differing = 0
    async with BulkConnection(redis) as bulk, aclosing(stream_holders(pool, drop.drop_no, after_seq)) as rows:
        async for chunk in rows:
            await bulk.send("HMGET", key, *chunk[::2])
            expected = [note.encode() for note in chunk[1::2]]
            found: list[bytes | None] = await bulk.reply()
            row_count += len(expected)
            if found == expected:
                continue
            for note, wanted in zip(found, expected, strict=True):
                if note is None:
                    missing += 1
                elif note != wanted and (at_rest or note != wanted.split(b" ", 1)[0]):
                    differing += 1
    return HolderDrift(row_count, missing, differing)
