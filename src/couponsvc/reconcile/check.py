"""`couponsvc check`: the conservation identity of every drop, exact and strict; writes nothing."""

import asyncio
import sys
from collections.abc import Sequence
from time import monotonic
from typing import Any, Final, NamedTuple

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from couponsvc.reconcile.examining import POLL_MS, Examination, examine
from couponsvc.reconcile.judging import Finding
from couponsvc.reconcile.proofs import prove_events, prove_numbers, prove_outbox
from couponsvc.reconcile.snapshot import QUERIES, Pool, StreamSide, read_stream
from couponsvc.settings import Settings
from couponsvc.support.postgres import open_pool
from couponsvc.support.redis_client import open_redis

PATIENCE_S: Final = 10.0
"""How long pending grants may take to settle: a drainer's take-over included would be longer, so
a check right after a crash may have to be run again; a rebuild fits easily."""
STATEMENT_TIMEOUT_MS: Final = 60_000
"""Full counts of some ten million vouchers."""

OK: Final = 0
WRONG: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3

TABLE_HEAD: Final = ("drop", "quantity", "available", "pending", "issued", "drift", "verdict")


DRAINED: Final = StreamSide(0, 0)
"""What the stream must be once every drop is at rest."""


class DropCheck(NamedTuple):
    """One line of the table. `quantity = available + pending + issued`, but for the drift."""

    drop_id: str
    quantity: int
    available: int
    pending: int
    """Granted in Redis and not yet issued by Postgres."""
    issued: int
    """By Postgres, whose rows, numbers, events and holders were counted in full."""
    findings: list[Finding]
    in_motion: bool
    """Grants kept flowing: counters were judged within bounds, everything else exactly."""

    @property
    def drift(self) -> int:
        """By how much the identity fails, or what else is wrong with how many vouchers."""
        missing = abs(self.quantity - self.available - self.pending - self.issued)
        return max([missing, *(finding.amount for finding in self.findings)])


async def check(
    pool: "Pool[asyncpg.Record]",
    redis: Redis,
    drop_id: str | None = None,
    *,
    shard: int = 0,
    patience_s: float = PATIENCE_S,
) -> list[DropCheck]:
    """Compare Redis and Postgres in full: I1, I3, I5, I7 and I8 of one drop, or of all drops.

    Args:
        pool: Of the ledger; its statements count every voucher.
        redis: The shard's server.
        drop_id: Which drop; None: all of them.
        shard: Whose drops.
        patience_s: How long pending grants may take to settle, for all drops together.

    Raises:
        LookupError: there is no such drop.
        OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: one of the
            two cannot be reached.
    """
    drop_nos = None
    if drop_id is not None:
        drop_nos = [await pool.fetchval(QUERIES["find_drop_no"], drop_id)]
        if drop_nos == [None]:
            raise LookupError(f"there is no drop {drop_id}; see GET /v1/drops or leave --drop out")
    give_up_at = monotonic() + patience_s
    examinations = await examine(pool, redis, shard, drop_nos, give_up_at, mend=False)
    return [await _prove(pool, examination) for examination in examinations]


async def check_stream(redis: Redis, shard: int, *, patience_s: float = PATIENCE_S) -> StreamSide:
    """The shard's stream; waits for it to be drained, so that both numbers are zero.

    Raises:
        redis.exceptions.RedisError: Redis cannot be reached.
    """
    give_up_at = monotonic() + patience_s
    while True:
        found = await read_stream(redis, shard)
        if found == DRAINED or monotonic() >= give_up_at:
            return found
        await asyncio.sleep(POLL_MS / 1000)


def main(settings: Settings, drop_id: str | None = None) -> int:
    """Print the table; the exit code: 0 all agrees, 1 drift, 2 no such drop, 3 cannot reach a server."""
    try:
        checks, stream = asyncio.run(_check_all(settings, drop_id))
    except LookupError as error:
        sys.stderr.write(f"couponsvc check: {error.args[0]}\n")
        return USAGE
    except (RedisError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        server = "Redis" if isinstance(error, RedisError) else "Postgres"
        reason = " ".join(str(error).split()) or type(error).__name__
        sys.stderr.write(
            f"couponsvc check: cannot reach {server} ({reason}); start it or set"
            f" COUPONSVC_{'REDIS_URL' if server == 'Redis' else 'POSTGRES_DSN'}\n"
        )
        return UNREACHABLE
    sys.stdout.write(render(checks, stream))
    return WRONG if any(line.drift for line in checks) or stream_is_wrong(checks, stream) else OK


def stream_is_wrong(checks: Sequence[DropCheck], stream: StreamSide) -> bool:
    """Whether grants are left over although no drop of the shard is in motion."""
    return stream != DRAINED and not any(line.in_motion for line in checks)


def render(checks: Sequence[DropCheck], stream: StreamSide) -> str:
    """The table as text, a line per drop, then a line per finding."""
    rows = [TABLE_HEAD] + [
        (c.drop_id, *(str(n) for n in (c.quantity, c.available, c.pending, c.issued, c.drift)), _verdict(c))
        for c in checks
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(TABLE_HEAD))]
    lines = [
        "  ".join(
            cell.rjust(width) if 0 < i < len(row) - 1 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines += [f"{c.drop_id}: {f.kind}: {f.detail}" for c in checks for f in c.findings]
    if stream_is_wrong(checks, stream):
        lines.append(f"stream: {stream.backlog} grants in {stream.entry_count} entries are left over")
    total = sum(c.drift for c in checks)
    lines.append(f"{len(checks)} drops checked, quantity = available + pending + issued, drift {total}")
    return "\n".join(lines) + "\n"


def _verdict(line: DropCheck) -> str:
    if line.drift:
        return "DRIFT"
    return "agrees (in motion)" if line.in_motion else "agrees"


async def _check_all(settings: Settings, drop_id: str | None) -> tuple[list[DropCheck], StreamSide]:
    pool: Any = await open_pool(
        settings.postgres_dsn.get_secret_value(), max_size=2, statement_timeout_ms=STATEMENT_TIMEOUT_MS
    )
    redis = open_redis(settings.redis_url, max_connections=2)
    try:
        checks = await check(pool, redis, drop_id, shard=settings.shard)
        in_motion = drop_id is not None or any(line.in_motion for line in checks)
        stream = DRAINED if in_motion else await check_stream(redis, settings.shard)
    finally:
        await redis.aclose()
        pool.terminate()
    return checks, stream


async def _prove(pool: "Pool[asyncpg.Record]", examination: Examination) -> DropCheck:
    drop_no = examination.look.drop_no
    numbers = (await prove_numbers(pool, {drop_no: 0}))[drop_no]
    outbox = (await prove_outbox(pool, {drop_no: 0}))[drop_no]
    events = await prove_events(pool, drop_no)
    return _line(examination, [*examination.findings, *numbers.findings, *outbox.findings, *events])


def _line(examination: Examination, findings: list[Finding]) -> DropCheck:
    look = examination.look
    drop, state = look.ledger.drop, look.after.state
    if state is None or not look.loaded:
        return DropCheck(drop.drop_id, drop.quantity, 0, 0, look.ledger.issued, findings, in_motion=False)
    pending = state.pending
    if examination.in_motion:  # of what Redis holds as pending, Postgres has issued some already
        pending = max(0, state.pending + state.issued - look.ledger.issued)
    return DropCheck(
        drop.drop_id, drop.quantity, state.available, pending, look.ledger.issued, findings,
        examination.in_motion,
    )  # fmt: skip
