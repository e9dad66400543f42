"""Notes what became of deliveries: the attempts, the queue, and how their endpoints are.

Who is authoritative: Postgres. A delivery leaves the queue only here, by a relay whose lease nobody has
taken over. If the note is lost, the delivery is made again, with the same id and the same bytes.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal, NamedTuple

from couponsvc.outbox import metrics, retries
from couponsvc.outbox.leasing import Connection, Lease, Pool
from couponsvc.support import logs
from couponsvc.support.guarded_http import PostResult
from couponsvc.support.sql import Queries
from couponsvc.values.event import event_id, subscription_id

STATUS_GONE: Final = 410
RELEASED_MAX_COUNT: Final = 1_000
"""Deliveries of an endpoint that become due with its success; the rest a moment later. Everybody's outcomes
wait for these: some 20 ms."""
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
class Remainder:
    """What follows from outcomes and may take long, so that it is left to `tending.Tender`."""

    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """There is some. An endpoint that was disabled is in Postgres and nowhere else."""
    accepting: set[int] = field(default_factory=set)
    """Endpoints that accept again, of which more waits than is released with their success. Where this
    is lost with its relay, the rest goes down its ladder."""


@dataclass
class _Run:
    """What an endpoint's outcomes of one batch come to."""

    accepted_at: datetime | None = None
    """When the newest accepted attempt began."""
    failed_at: datetime | None = None
    """When the newest one began that has failed since."""
    gone: bool = False


@dataclass
class Settler:
    """Writes outcomes to Postgres. `settle` must be repeated with the same batch until it returns."""

    pool: Pool
    remainder: Remainder = field(default_factory=Remainder)
    _repeated: bool = field(default=False, init=False)

    async def settle(self, outcomes: Sequence[Outcome], now: datetime) -> None:
        """Note a batch, in the order in which the attempts ended.

        All of it in one transaction: who leases next sees the endpoint as this leaves it, and an attempt
        that is recorded is noted in full.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: it may or may not be
                noted; repeat it.
        """
        unnoted = await self._unnoted(outcomes) if self._repeated else outcomes
        self._repeated = True
        runs = _runs(unnoted)
        if runs:
            async with self.pool.acquire() as connection, connection.transaction():
                await connection.execute(_queries["settle"], now, *_columns(unnoted))
                back = await self._note_endpoints(connection, runs, now)
            self._pass_on(runs, back)
        elif unnoted:  # all well, as nearly always: one statement, in one round trip
            await self.pool.execute(_queries["settle"], now, *_columns(unnoted))
        self._repeated = False
        _tell(outcomes)

    async def _unnoted(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        """Those that the settling before, whose answer was lost, did not note."""
        keys = [(o.lease.subscription_no, o.lease.event_no, o.attempted_at) for o in outcomes]
        columns = [list(column) for column in zip(*keys, strict=True)]
        noted = {tuple(row) for row in await self.pool.fetch(_queries["already_noted"], *columns)}
        return [outcome for outcome, key in zip(outcomes, keys, strict=True) if key not in noted]

    @staticmethod
    async def _note_endpoints(connection: Connection, runs: dict[int, _Run], now: datetime) -> dict[int, int]:
        """Count failures; release what waits for those that accept again, and say how much of each."""
        rows = await connection.fetch(
            _queries["note_endpoints"],
            now,
            list(runs),
            [run.accepted_at for run in runs.values()],
            [run.failed_at for run in runs.values()],
            [run.gone for run in runs.values()],
            retries.FAILING_FROM_COUNT,
            retries.HOLDS_S,
        )
        before = {row["subscription_no"]: row["failure_count"] for row in rows}
        back = [number for number, count in before.items() if count >= retries.FAILING_FROM_COUNT]
        troubled = [
            n for n, count in before.items() if n not in back and count >= retries.TROUBLED_FROM_COUNT
        ]
        if troubled:
            most = (RELEASED_MAX_COUNT, retries.YOUNG_ATTEMPTS_MAX_COUNT, now + retries.YOUNG_DUE_WITHIN)
            await connection.execute(_queries["release_young"], now, troubled, *most)
        return dict.fromkeys(back, 0) | await release(connection, back, now)

    def _pass_on(self, runs: dict[int, _Run], back: dict[int, int]) -> None:
        """What is left to do, once it is committed."""
        for subscription_no, released in back.items():
            _log.info("endpoint accepts again", subscription_id=subscription_id(subscription_no))
            if released == RELEASED_MAX_COUNT:
                self.remainder.accepting.add(subscription_no)
                self.remainder.wake.set()
        if any(run.gone for run in runs.values()):
            self.remainder.wake.set()


async def release(
    connection: "Connection | Pool", subscription_nos: Sequence[int], now: datetime
) -> dict[int, int]:
    """Make due at once what failed before and waits for these endpoints; how much of each.

    Of each it is RELEASED_MAX_COUNT at most: where it is as many, more may be left.

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: Postgres is away.
    """
    if not subscription_nos:
        return {}
    rows = await connection.fetch(_queries["release_waiting"], now, subscription_nos, RELEASED_MAX_COUNT)
    return {row["subscription_no"]: row["released"] for row in rows}


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
            o.lease.queued_at,
        )
        for o in outcomes
    ]
    return [list(column) for column in zip(*rows, strict=True)]


def _error_of(outcome: Outcome) -> str:
    if outcome.kind == "delivered":
        return ""
    return (outcome.result.error or f"the receiver answered {outcome.result.status}")[:ERROR_MAX_CHARS]


def _runs(outcomes: Sequence[Outcome]) -> dict[int, _Run]:
    """By endpoint, of those that something is to be noted of: a failure, or a success after failures."""
    runs: dict[int, _Run] = {}
    for outcome in outcomes:
        run = runs.setdefault(outcome.lease.subscription_no, _Run())
        if outcome.kind == "delivered":
            run.accepted_at = max(outcome.attempted_at, run.accepted_at or outcome.attempted_at)
            run.failed_at = None
        else:
            run.failed_at = max(outcome.attempted_at, run.failed_at or outcome.attempted_at)
            run.gone |= outcome.kind == "gone"
    troubled = {outcome.lease.subscription_no for outcome in outcomes if outcome.lease.troubled}
    return {number: run for number, run in sorted(runs.items()) if run.failed_at or number in troubled}


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
