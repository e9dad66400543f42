"""Reads what stands: committed vouchers from Postgres, pending grants from the stream.

To tell that a number is neither, look at the stream first and at Postgres second: a grant
moves from the stream to Postgres, so the other order can miss one that moves in between.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final

import asyncpg
from redis.asyncio import Redis

from couponsvc.ledger.stream import RawEntry, entries_between, newest_entry_id
from couponsvc.support.sql import Queries
from couponsvc.values import keys, wire
from couponsvc.values.grab import split_holder
from couponsvc.values.voucher import StandingVoucher

SCAN_PAGE_COUNT: Final = 64
"""Stream entries per XRANGE: at most 64 x 512 grants, some 15 ms of decoding between two awaits."""

_queries = Queries("couponsvc.ledger", "reading")


async def find_by_requests(
    pool: "asyncpg.Pool[asyncpg.Record]", requests: Sequence[tuple[int, str]]
) -> dict[tuple[int, str], StandingVoucher]:
    """Vouchers that stand for `(partner_no, out_request_no)`; absent: nothing is committed.

    Raises:
        OSError, asyncpg.PostgresError: the ledger cannot be read; nothing may be concluded.
    """
    rows = await pool.fetch(
        _queries["find_by_requests"], [partner_no for partner_no, _ in requests], [n for _, n in requests]
    )
    return {(v.partner_no, v.out_request_no): v for v in standing_vouchers(rows)}


async def find_voucher(
    pool: "asyncpg.Pool[asyncpg.Record]", drop_no: int, seq: int
) -> StandingVoucher | None:
    """The voucher with this name, or None.

    Raises:
        OSError, asyncpg.PostgresError: the ledger cannot be read.
    """
    row = await pool.fetchrow(_queries["find_voucher"], drop_no, seq)
    return StandingVoucher(*row) if row else None


async def find_by_person(
    pool: "asyncpg.Pool[asyncpg.Record]", drop_no: int, person_token: str, partner_no: int | None, limit: int
) -> list[StandingVoucher]:
    """What a person holds of a drop. `partner_no` None: under every partner (operators, auditors).

    Raises:
        OSError, asyncpg.PostgresError: the ledger cannot be read.
    """
    if partner_no is None:
        name = "find_by_person_of_any_partner"
        return standing_vouchers(await pool.fetch(_queries[name], drop_no, person_token, limit))
    rows = await pool.fetch(_queries["find_by_person"], drop_no, person_token, partner_no, limit)
    return standing_vouchers(rows)


async def page(
    pool: "asyncpg.Pool[asyncpg.Record]", drop_no: int, after_seq: int, limit: int
) -> list[StandingVoucher]:
    """Up to `limit` vouchers of a drop after `after_seq`, in order of `seq`.

    Raises:
        OSError, asyncpg.PostgresError: the ledger cannot be read.
    """
    return standing_vouchers(await pool.fetch(_queries["page"], drop_no, after_seq, limit))


def standing_vouchers(rows: Iterable[asyncpg.Record]) -> list[StandingVoucher]:
    """Rows of `reading.sql`, whose columns stand in the order of the fields."""
    return [StandingVoucher(*row) for row in rows]


class PendingView:
    """Looks for grants on a shard's stream that nobody has acknowledged.

    A scan reads the whole stream once, however many ask: everyone who asked before it began
    shares its answer, everyone who asks later shares the next. So at most two scans' callers
    wait, and Redis sees at most one scan at a time from each process.
    """

    def __init__(self, redis: Redis, shard: int) -> None:
        self._redis = redis
        self._stream = keys.grants_key(shard)
        self._asked: dict[tuple[int, str], asyncio.Future[int | None]] = {}
        self._scanner: asyncio.Task[None] | None = None

    async def is_pending(self, partner_no: int, out_request_no: str) -> bool:
        """Whether a grant under this number is on the stream, of whatever drop.

        Raises:
            redis.exceptions.RedisError: the stream cannot be read; nothing may be concluded.
        """
        return await self.drop_of(partner_no, out_request_no) is not None

    async def holds(self, drop_no: int, partner_no: int, out_request_no: str) -> bool:
        """Whether a grant of this drop under this number is on the stream.

        Raises:
            redis.exceptions.RedisError: as `is_pending`.
        """
        return await self.drop_of(partner_no, out_request_no) == drop_no

    async def drop_of(self, partner_no: int, out_request_no: str) -> int | None:
        """`drop_no` of the pending grant under this number (the oldest), or None.

        Raises:
            redis.exceptions.RedisError: as `is_pending`.
        """
        key = (partner_no, out_request_no)
        answer = self._asked.get(key)
        if answer is None:
            answer = self._asked[key] = asyncio.get_running_loop().create_future()
        if self._scanner is None:
            self._scanner = asyncio.create_task(self._scan_while_asked())
        return await asyncio.shield(answer)

    async def _scan_while_asked(self) -> None:
        try:
            while self._asked:
                asked, self._asked = self._asked, {}
                await self._answer(asked)
        finally:
            self._scanner = None
            for answer in self._asked.values():  # only where the scanner itself was cancelled
                answer.cancel()

    async def _answer(self, asked: dict[tuple[int, str], asyncio.Future[int | None]]) -> None:
        try:
            found = await self._scan(asked.keys())
        except Exception as error:  # noqa: BLE001 - handed to whoever asked, who knows what to do
            for answer in asked.values():
                answer.set_exception(error)
                answer.exception()  # a caller that went away must not turn this into a warning
            return
        except BaseException:
            for answer in asked.values():
                answer.cancel()
            raise
        for key, answer in asked.items():
            answer.set_result(found.get(key))

    async def _scan(self, asked: Iterable[tuple[int, str]]) -> dict[tuple[int, str], int]:
        """Read the stream up to what was its end when the scan began: that bounds it."""
        by_number: dict[str, set[int]] = {}
        for partner_no, out_request_no in asked:
            by_number.setdefault(out_request_no, set()).add(partner_no)
        last_id = await newest_entry_id(self._redis, self._stream)
        found: dict[tuple[int, str], int] = {}
        first = "-"
        while last_id:
            entries = await entries_between(self._redis, self._stream, first, last_id, SCAN_PAGE_COUNT)
            for entry in entries:
                _collect(entry, by_number, found)
            if len(entries) < SCAN_PAGE_COUNT:
                break
            first = f"({entries[-1].entry_id.decode()}"
        return found


def _collect(raw: RawEntry, by_number: dict[str, set[int]], found: dict[tuple[int, str], int]) -> None:
    """Note the asked grants of one entry; what no version can read holds nothing that we may tell."""
    try:
        entry = wire.decode_entry(raw.entry_id, raw.fields or {})
    except wire.MalformedEntry:
        return
    for grant in entry.grants:
        partners = by_number.get(grant.out_request_no)
        if partners:
            partner_no, _ = split_holder(grant.holder)
            if partner_no in partners:
                found.setdefault(
                    (partner_no, grant.out_request_no), entry.drops[grant.drop_index - 1].drop_no
                )
