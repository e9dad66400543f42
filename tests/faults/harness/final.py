"""The final state: what Postgres, Redis and the receivers of events hold once everything is healed.

Postgres is read directly, not through the service: whatever the service would tell of itself is
what the checker judges. A state is read when it has come to rest, or when patience is over.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from time import monotonic
from typing import Any, Final, NamedTuple, Protocol

import asyncpg
from redis.asyncio import Redis

from couponsvc.support.redis_client import open_redis
from couponsvc.values import keys
from couponsvc.values.drop import VoucherTerms
from couponsvc.values.voucher import Issued, Receipt

REST_S: Final = 10.0
"""How long the relay may take to number what stands in the outbox."""
POLL_S: Final = 0.1
CHECK_TIMEOUT_S: Final = 90.0
"""`couponsvc check` waits 10 s for pending grants, and counts every voucher."""
SHARD: Final = 0

_DROPS: Final = """
SELECT d.drop_no, d.drop_id, d.quantity, d.per_person_limit, d.issued, d.epoch, d.status,
       (extract(epoch FROM d.opens_at) * 1000)::bigint AS opens_ms,
       (extract(epoch FROM d.closes_at) * 1000)::bigint AS closes_ms,
       d.face_value_fen, d.min_spend_fen, d.valid_for_ms
FROM drops d WHERE $1::text[] IS NULL OR d.drop_id = ANY ($1) ORDER BY d.drop_no
"""
_VOUCHERS: Final = """
SELECT v.drop_no, p.partner_id, v.person_token, v.ordinal, v.seq, v.out_request_no, v.code,
       (extract(epoch FROM v.issued_at) * 1000)::bigint AS issued_ms
FROM vouchers v JOIN partners p USING (partner_no)
WHERE v.drop_no = ANY ($1::int[]) ORDER BY v.drop_no, v.seq
"""
_EVENTS: Final = """
SELECT e.event_no, p.partner_id, e.drop_no, e.sequence, e.type, e.voucher_count, ARRAY(
  SELECT v.seq FROM vouchers v
  WHERE v.drop_no = e.drop_no AND v.seq BETWEEN e.first_seq AND e.last_seq AND v.partner_no = e.partner_no
  ORDER BY v.seq
) AS seqs
FROM events e JOIN partners p USING (partner_no)
WHERE e.drop_no = ANY ($1::int[]) ORDER BY e.event_no
"""
_OUTBOX: Final = """
SELECT o.drop_no, o.type, o.first_seq, o.last_seq FROM outbox o WHERE o.drop_no = ANY ($1::int[])
"""


class FinalDrop(NamedTuple):
    """A drop as Postgres and Redis have it."""

    drop_id: str
    drop_no: int
    quantity: int
    limit: int
    """Vouchers per person."""
    issued: int
    epoch: int
    opens_ms: int
    closes_ms: int
    status: int
    """A `values.drop.DropStatus`."""
    state: Mapping[str, int] | None
    """The state hash of that epoch (`keys.STATE_FIELDS`), or None: it is not loaded."""
    published: int
    """The epoch that Redis has published; 0: none."""


class FinalVoucher(NamedTuple):
    """A row of the ledger."""

    drop_id: str
    partner_id: str
    person_token: str
    ordinal: int
    seq: int
    out_request_no: str
    code: str
    issued_ms: int
    receipt: bytes
    """The answer to its grab, as it must be for ever."""


class FinalEvent(NamedTuple):
    """An event as it was numbered for a partner."""

    event_no: int
    partner_id: str
    drop_id: str
    sequence: int
    kind: str
    """`voucher.issued`, `drop.opened` …"""
    voucher_count: int
    """As the event says."""
    seqs: Sequence[int]
    """The partner's vouchers that it tells of."""


class Untold(NamedTuple):
    """What is left in the outbox."""

    drop_id: str
    kind: str
    first_seq: int | None
    last_seq: int | None


class Heard(NamedTuple):
    """An event as a receiver of webhooks kept it, or a reader of the feed."""

    partner_id: str
    """Whose it was."""
    event_id: str
    body: bytes


class Stream(NamedTuple):
    """What is left of the grants in Redis; all zero at rest."""

    entry_count: int = 0
    unacknowledged_count: int = 0
    """Entries in the hands of a drainer (the group's pending list)."""
    backlog: int = 0


class FinalState(NamedTuple):
    """Everything that stands."""

    drops: Sequence[FinalDrop]
    vouchers: Sequence[FinalVoucher]
    events: Sequence[FinalEvent] = ()
    untold: Sequence[Untold] = ()
    stream: Stream = Stream()
    check_exit: int = 0
    check_output: str = ""
    heard: Sequence[Heard] = ()
    followed: Sequence[Sequence[Heard]] = ()
    """By way of reading (pages, streams) what every partner read of its feed, in order; the body is the
    event's `data`."""


class Running(Protocol):
    """What is read of a deployment (see `tests.faults.harness.deployment`)."""

    @property
    def redis_url(self) -> str:
        """Of the primary, not through a proxy."""

    @property
    def postgres_dsn(self) -> str:
        """Not through a proxy."""

    @property
    def environment(self) -> Mapping[str, str]:
        """For `couponsvc check`."""


Check = Callable[[Mapping[str, str]], Awaitable[tuple[int, str]]]
"""Gives exit code and output of `couponsvc check` in this environment."""


async def read_final(
    deployment: Running,
    drop_ids: Collection[str] | None = None,
    heard: Sequence[Heard] = (),
    *,
    check: Check | None = None,
    rest_s: float = REST_S,
) -> FinalState:
    """Let everything come to rest, then read it.

    Args:
        deployment: Healed, with all its processes running.
        drop_ids: Whose vouchers and events are read; None: every drop's. `couponsvc check`
            looks at all of them either way.
        heard: What the receivers of webhooks kept.
        check: In place of `run_check`.
        rest_s: How long the relay may take.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: a server is not
            there, although everything should be healed.
    """
    check_exit, check_output = await (check or run_check)(deployment.environment)
    redis = open_redis(deployment.redis_url, max_connections=1)
    connection = await asyncpg.connect(deployment.postgres_dsn, timeout=REST_S)
    try:
        rows = await connection.fetch(_DROPS, None if drop_ids is None else list(drop_ids))
        names = {row["drop_no"]: row["drop_id"] for row in rows}
        await _told(connection, list(names), rest_s)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            rows = await connection.fetch(_DROPS, list(names.values()))
            vouchers = _vouchers(rows, await connection.fetch(_VOUCHERS, list(names)))
            events = await connection.fetch(_EVENTS, list(names))
            untold = await connection.fetch(_OUTBOX, list(names))
        drops = [await _drop(redis, row) for row in rows]
        stream = await _stream(redis)
    finally:
        await connection.close()
        await redis.aclose()
    return FinalState(
        drops=drops,
        vouchers=vouchers,
        events=[FinalEvent(no, partner, names[drop_no], *rest) for no, partner, drop_no, *rest in events],
        untold=[Untold(names[drop_no], *rest) for drop_no, *rest in untold],
        stream=stream,
        check_exit=check_exit,
        check_output=check_output,
        heard=heard,
    )


async def run_check(environment: Mapping[str, str]) -> tuple[int, str]:
    """`(exit code, output)` of `couponsvc check`; -1 where it did not end in time."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "couponsvc", "check",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env={**os.environ, **environment},
    )  # fmt: skip
    try:
        output, _ = await asyncio.wait_for(process.communicate(), CHECK_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        return -1, f"couponsvc check did not end within {CHECK_TIMEOUT_S:.0f} s"
    return process.returncode or 0, output.decode(errors="replace")


async def _told(connection: "asyncpg.Connection[asyncpg.Record]", drop_nos: list[int], rest_s: float) -> None:
    """Wait until a relay has numbered everything in the outbox, as long as patience lasts."""
    give_up_at = monotonic() + rest_s
    while await connection.fetch(f"{_OUTBOX} LIMIT 1", drop_nos) and monotonic() < give_up_at:
        await asyncio.sleep(POLL_S)


def _vouchers(drops: "Sequence[asyncpg.Record]", rows: "Sequence[asyncpg.Record]") -> Sequence[FinalVoucher]:
    receipts = {
        drop["drop_no"]: (
            drop["drop_id"],
            Receipt(
                drop["drop_no"],
                drop["drop_id"],
                VoucherTerms(drop["face_value_fen"], drop["min_spend_fen"], drop["valid_for_ms"]),
            ),
        )
        for drop in drops
    }
    vouchers = []
    for drop_no, partner_id, person, ordinal, seq, number, code, issued_ms in rows:
        drop_id, receipt = receipts[drop_no]
        body = receipt.render(Issued(person, number, seq, issued_ms, code))
        vouchers.append(
            FinalVoucher(drop_id, partner_id, person, ordinal, seq, number, code, issued_ms, body)
        )
    return vouchers


async def _drop(redis: Redis, row: asyncpg.Record) -> FinalDrop:
    published = await redis.hget(keys.shard_key(SHARD), keys.epoch_field(row["drop_no"]))
    state: Any = await redis.hgetall(keys.state_key(SHARD, row["drop_no"], row["epoch"]))
    return FinalDrop(
        row["drop_id"], row["drop_no"], row["quantity"], row["per_person_limit"], row["issued"], row["epoch"],
        row["opens_ms"], row["closes_ms"], row["status"],
        {name.decode(): int(value) for name, value in state.items()} or None,
        int(published or 0),
    )  # fmt: skip


async def _stream(redis: Redis) -> Stream:
    stream = keys.grants_key(SHARD)
    groups: Any = await redis.xinfo_groups(stream) if await redis.exists(stream) else []
    backlog = await redis.hget(keys.shard_key(SHARD), keys.BACKLOG_FIELD)
    return Stream(await redis.xlen(stream), sum(int(group["pending"]) for group in groups), int(backlog or 0))
