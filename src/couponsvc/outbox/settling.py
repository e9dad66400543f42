"""Notes what became of deliveries: the attempts, the queue, and how their endpoints are.

Who is authoritative: Postgres. A delivery leaves the queue only here, by a relay whose lease nobody has
taken over. If the note is lost, the delivery is made again, with the same id and the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal, NamedTuple

from couponsvc.outbox import metrics, retries
from couponsvc.outbox.leasing import Lease, Pool
from couponsvc.support import logs
from couponsvc.support.guarded_http import PostResult
from couponsvc.support.sql import Queries
from couponsvc.values.event import event_id, subscription_id

STATUS_GONE: Final = 410
CHUNK_COUNT: Final = 5_000
"""Queue rows changed by one statement: some tenths of a second."""
ERROR_MAX_CHARS: Final = 200
PUT_OFF: Final = timedelta(seconds=60)
"""A relay of another version, or with the right master key, may do what this one cannot."""

_queries: Final = Queries("couponsvc.outbox", "endpoints")
_log = logs.get("couponsvc.outbox.settling")

Kind = Literal["delivered", "failed", "gone"]


class Outcome(NamedTuple):
    """One attempt, as it ended, and what follows."""

    lease: Lease
    attempted_at: datetime
    result: PostResult
    kind: Kind
    due_at: datetime | None
    parked_because: str | None

    @property
    def attempt_no(self) -> int:
        """From 1."""
        return self.lease.attempt_count + 1


def judge(
    lease: Lease, attempted_at: datetime, result: PostResult, ended_at: datetime, jitter: float
) -> Outcome:
    """Say what follows an attempt: 2xx is accepted, 410 ends the subscription, all else is tried again."""
    if result.accepted:
        return Outcome(lease, attempted_at, result, "delivered", None, None)
    if result.status == STATUS_GONE:
        return Outcome(lease, attempted_at, result, "gone", None, retries.GONE)
    due_at, parked_because = retries.after_failure(lease.attempt_count + 1, lease.queued_at, ended_at, jitter)
    return Outcome(lease, attempted_at, result, "failed", due_at, parked_because)


@dataclass
class _Run:
    """What an endpoint's outcomes of one batch come to."""

    accepted: bool = False
    failures: int = 0
    """Since the last acceptance."""
    probe_failed: bool = False


@dataclass
class Settler:
    """Writes outcomes to Postgres. `settle` must be repeated with the same batch until it returns."""

    pool: Pool
    _repeated: bool = field(default=False, init=False)

    async def settle(self, outcomes: Sequence[Outcome], now: datetime) -> None:
        """Note a batch, in the order in which the attempts ended.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: it may or may not be
                noted; repeat it.
        """
        repeated, self._repeated = self._repeated, True
        rows = await self.pool.fetch(
            _queries["settle"], now, *_columns(outcomes), repeated, [o.lease.queued_at for o in outcomes]
        )
        runs = _runs(outcomes)
        failing_before = {row["subscription_no"] for row in rows}
        await self._note_successes(
            [number for number, run in runs.items() if run.accepted and number in failing_before], now
        )
        await self._note_failures({number: run for number, run in runs.items() if run.failures}, now)
        if gone := sorted({outcome.lease.subscription_no for outcome in outcomes if outcome.kind == "gone"}):
            await self.pool.execute(_queries["disable"], now, gone)
            await park_disabled(self.pool, now)
        self._repeated = False
        _tell(outcomes)

    async def _note_successes(self, subscription_nos: Sequence[int], now: datetime) -> None:
        if not subscription_nos:
            return
        rows = await self.pool.fetch(_queries["note_successes"], subscription_nos, retries.FAILING_FROM_COUNT)
        back = [row["subscription_no"] for row in rows]
        while (
            back
            and await self.pool.fetchval(_queries["release_waiting"], now, back, CHUNK_COUNT) == CHUNK_COUNT
        ):
            pass
        for subscription_no in back:
            _log.info("endpoint accepts again", subscription_id=subscription_id(subscription_no))

    async def _note_failures(self, runs: dict[int, _Run], now: datetime) -> None:
        if runs:
            await self.pool.execute(
                _queries["note_failures"],
                now,
                list(runs),
                [run.failures for run in runs.values()],
                [run.probe_failed for run in runs.values()],
                retries.FAILING_FROM_COUNT,
                retries.HOLDS_S,
            )


async def put_off(pool: Pool, leases: Sequence[Lease], now: datetime) -> None:
    """Give back deliveries that this relay cannot attempt, to be looked at again after `PUT_OFF`.

    No attempt is counted: the reason lies with us. What has waited for a whole ladder is given up.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: Postgres is away.
    """
    for relay_no in {lease.leased_by for lease in leases}:
        own = [lease for lease in leases if lease.leased_by == relay_no]
        numbers = [lease.subscription_no for lease in own], [lease.event_no for lease in own]
        old = now - retries.LADDER
        await pool.execute(_queries["put_off"], now, now + PUT_OFF, relay_no, *numbers, old, retries.NOT_SENT)


async def park_disabled(pool: Pool, now: datetime) -> int:
    """Park what is queued for disabled endpoints; how many.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: Postgres is away.
    """
    chunk = CHUNK_COUNT
    total = 0
    while chunk == CHUNK_COUNT:
        chunk = await pool.fetchval(_queries["park_disabled"], now, retries.GONE, CHUNK_COUNT)
        total += chunk
    metrics.parked.inc(total)
    return total


async def sweep(pool: Pool, now: datetime) -> int:
    """Park what has waited too long or for nothing, forget what nobody waits for; how many were parked.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: Postgres is away.
    """
    total = await park_disabled(pool, now)
    chunk = CHUNK_COUNT
    while chunk == CHUNK_COUNT:
        chunk = await pool.fetchval(
            _queries["park_overdue"],
            now,
            retries.TOO_OLD,
            CHUNK_COUNT,
            now - retries.LADDER,
            retries.FAILING_FROM_COUNT,
        )
        total += chunk
        metrics.parked.inc(chunk)
    while await pool.fetchval(_queries["forget_deleted"], CHUNK_COUNT) == CHUNK_COUNT:
        pass
    return total


async def observe(pool: Pool, now: datetime) -> None:
    """Show how much waits.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: Postgres is away.
    """
    row = await pool.fetchrow(_queries["observe"])
    assert row is not None, "aggregates always make a row"  # noqa: S101 - narrows the type
    metrics.outbox_rows.set(row["outbox_rows"])
    metrics.outbox_oldest_seconds.set(_age_s(row["outbox_since"], now))
    metrics.queued.set(row["queued"])
    metrics.parked_now.set(row["parked"])
    metrics.oldest_undelivered_seconds.set(_age_s(row["queued_since"], now))


def _age_s(since: datetime | None, now: datetime) -> float:
    return 0.0 if since is None else max(0.0, (now - since).total_seconds())


def _columns(outcomes: Sequence[Outcome]) -> list[list[object]]:
    """As `settle` takes them."""
    rows = [
        (
            o.lease.subscription_no,
            o.lease.event_no,
            o.lease.leased_by,
            o.attempt_no,
            o.attempted_at,
            o.result.took_ms,
            o.result.status,
            o.kind,
            _error_of(o),
            o.due_at,
            o.parked_because,
        )
        for o in outcomes
    ]
    return [list(column) for column in zip(*rows, strict=True)]


def _error_of(outcome: Outcome) -> str:
    if outcome.kind == "delivered":
        return ""
    return (outcome.result.error or f"the receiver answered {outcome.result.status}")[:ERROR_MAX_CHARS]


def _runs(outcomes: Sequence[Outcome]) -> dict[int, _Run]:
    runs: dict[int, _Run] = {}
    for outcome in outcomes:
        run = runs.setdefault(outcome.lease.subscription_no, _Run())
        if outcome.kind == "delivered":
            run.accepted, run.failures, run.probe_failed = True, 0, False
        else:
            run.failures += 1
            run.probe_failed |= outcome.lease.probe
    return dict(sorted(runs.items()))


def _tell(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        name = subscription_id(outcome.lease.subscription_no)
        metrics.attempts.labels(name, outcome.kind).inc()
        if outcome.kind == "delivered":
            continue
        if outcome.parked_because is not None:
            metrics.parked.inc()
        tell = _log.info if outcome.parked_because is None else _log.warning
        tell(
            "delivery failed",
            subscription_id=name,
            event_id=event_id(outcome.lease.event_no),
            attempt_no=outcome.attempt_no,
            status=outcome.result.status,
            parked_because=outcome.parked_because,
        )
