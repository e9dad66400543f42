"""A ledger without a service: vouchers and outbox rows as drainers leave them, and relays beside it.

Nothing but relays, Postgres and receivers runs, so what they cost is theirs alone. Vouchers are written
beforehand; their outbox rows are released at once, and the relay finds a backlog. It merges the commits
of a drop that one turn finds, so a backlog is of as many drops as a turn takes rows, one of each in turn:
then a commit is an event, and what an event of so many vouchers costs is what is measured.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import time
from typing import Final, NamedTuple

import asyncpg

from bench.cpu import read_cpu
from bench.events.receiving import Received, Receiver, WrongDeliveries
from bench.events.subscribed import TYPES
from couponsvc import limits
from couponsvc.engines.account import Account
from couponsvc.engines.place import make_data_dir
from couponsvc.engines.postgres import EmbeddedPostgres
from couponsvc.ledger.migrate import migrate
from couponsvc.outbox.subscriptions import create
from couponsvc.programs.definitions import define_program, define_template
from couponsvc.support.postgres import open_pool
from couponsvc.support.sealing import MasterKey
from couponsvc.values.drop import VoucherTerms

MASTER_KEY: Final = "YmVuY2gtYmVuY2gtYmVuY2gtYmVuY2gtYmVuY2gtYmU="
"""Of ledgers that are thrown away."""
NAME: Final = "bench"
"""Of actor, program, template and partner."""
TERMS: Final = VoucherTerms(2_000, 6_000, 48 * 3_600_000)
IDLE_S: Final = 1.5
"""For relays that were just started to have done what they do only then."""
PATIENCE_S: Final = 120.0
POLL_S: Final = 0.01
NO_REDIS: Final = "redis://127.0.0.1:1/0"
"""A relay talks to Postgres only."""

_ADD_PARTNER = "INSERT INTO partners (partner_id, name) VALUES ($1, $1) RETURNING partner_no"
_ADD_DROPS = """
WITH made AS (
  INSERT INTO drops (drop_id, program_no, template_id, quantity, per_person_limit, opens_at, closes_at,
                     face_value_fen, min_spend_fen, valid_for_ms, issued)
  SELECT $1 || '-' || n, program_no, template_id, $2::int + 1, 1, now() - interval '1 hour',
         now() + interval '9 hours', face_value_fen, min_spend_fen, valid_for_ms, $2::int
  FROM templates, generate_series(1, $3::int) AS n
  RETURNING drop_no
), admitted AS (
  INSERT INTO drop_partners (drop_no, partner_no) SELECT drop_no, $4::int FROM made
)
SELECT array_agg(drop_no ORDER BY drop_no) FROM made
"""
_ADD_VOUCHERS = """
INSERT INTO vouchers (drop_no, seq, partner_no, ordinal, issued_at, person_token, out_request_no, code,
                      channel, region)
SELECT drop_no, seq, $2, 1, $4, 'p-' || substr(md5(seq || '-' || drop_no), 1, 16),
       md5(drop_no || '-' || seq), upper(substr(md5(seq::text), 1, 13)), 'app', '370200'
FROM unnest($1::int[]) AS drop_no, generate_series(1, $3::int) AS seq
"""
_RELEASE = """
INSERT INTO outbox (type, drop_no, first_seq, last_seq, occurred_at)
SELECT 'voucher.issued', drop_no, first_seq, first_seq + $3::int - 1, now()
FROM unnest($1::int[]) AS drop_no, generate_series(1, $2::int, $3::int) AS first_seq
ORDER BY first_seq, drop_no
"""
_OPENED = """
SELECT count(*) = cardinality($1::int[]) FROM drop_tellings WHERE drop_no = ANY ($1::int[]) AND opened_told
"""


class Drained(NamedTuple):
    """How a backlog was worked off.

    Attributes:
        vouchers_per_s: From the release of the backlog to the last receipt.
        relay_us: CPU of all relays per voucher, microseconds; so `postgres_us` and `receiver_us`.
    """

    events_per_s: float
    vouchers_per_s: float
    relay_us: float
    postgres_us: float
    receiver_us: float
    received: Received

    def describe(self) -> str:
        """For people."""
        return (
            f"{self.events_per_s:,.0f} events/s, {self.vouchers_per_s:,.0f} vouchers/s, CPU per voucher:"
            f" relay {self.relay_us:.1f} µs, Postgres {self.postgres_us:.1f}, receiver {self.receiver_us:.1f}"
        )


class BenchLedger:
    """A database with a partner, a subscription of its receiver, and as many drops as are asked for."""

    def __init__(self, dsn: str, pool: "asyncpg.Pool[asyncpg.Record]", postgres_pid: int) -> None:
        self.dsn: Final = dsn
        self.pool: Final = pool
        self._postgres_pid: Final = postgres_pid
        self.partner_no = 0
        self._backlogs_count = 0

    async def prepare(self) -> None:
        """Define a program, a template, a partner."""
        key = MasterKey.from_base64(MASTER_KEY)
        await define_program(self.pool, key, NAME, program_id=NAME, name=NAME, region="")
        await define_template(self.pool, NAME, program_id=NAME, template_id=NAME, name="60-20", terms=TERMS)
        self.partner_no = await self.pool.fetchval(_ADD_PARTNER, NAME)

    async def subscribe(self, well: Receiver) -> None:
        """Have the partner's events sent to its receiver."""
        key = MasterKey.from_base64(MASTER_KEY)
        _, secret = await create(self.pool, key, self.partner_no, well.url(), TYPES, None)
        await well.trust(secret)

    async def drain(self, well: Receiver, *, vouchers: int, per_event: int, relays: int = 1) -> Drained:
        """Write vouchers, start relays, release the vouchers' outbox rows, wait until all was received.

        Args:
            well: Who receives them.
            vouchers: How many; as many events in every drop, all of them of the size asked for.
            per_event: Vouchers that each event tells of.
            relays: How many share the work.

        Raises:
            WrongDeliveries: not every voucher came once, or events are of another size.
            TimeoutError: they do not come.
        """
        events = vouchers // per_event
        drops = min(events, limits.SEQUENCE_TURN_MAX_COUNT)
        assert drops * (events // drops) * per_event == vouchers, "every drop has as many events"
        drop_nos = await self._issue(drops, vouchers // drops)
        async with AsyncExitStack() as stack:
            pids = [await stack.enter_async_context(relay(self.dsn)) for _ in range(relays)]
            await asyncio.sleep(IDLE_S)
            await self._until(lambda: self.pool.fetchval(_OPENED, drop_nos))
            await well.report()
            roots = {"relay": pids, "postgres": [self._postgres_pid], "receiver": [well.pid]}
            before, began_s = read_cpu(roots), time()
            await self.pool.execute(_RELEASE, drop_nos, vouchers // drops, per_event)
            await self._until(lambda: _has(well, vouchers))
            used = {kind: us - before[kind] for kind, us in read_cpu(roots).items()}
        received = await well.report()
        if (received.events, received.vouchers, received.missing) != (events, vouchers, 0):
            raise WrongDeliveries(
                f"{vouchers} vouchers were issued in events of {per_event}; received: {received}"
            )
        seconds = received.last_s - began_s
        return Drained(
            events_per_s=received.events / seconds,
            vouchers_per_s=vouchers / seconds,
            relay_us=used["relay"] / vouchers,
            postgres_us=used["postgres"] / vouchers,
            receiver_us=used["receiver"] / vouchers,
            received=received,
        )

    async def _issue(self, drops: int, vouchers: int) -> list[int]:
        """So many drops with so many vouchers each; their numbers."""
        self._backlogs_count += 1
        drop_nos: list[int] = await self.pool.fetchval(
            _ADD_DROPS, f"backlog-{self._backlogs_count}", vouchers, drops, self.partner_no
        )
        moment = await self.pool.fetchval("SELECT date_trunc('milliseconds', now())")
        await self.pool.execute(_ADD_VOUCHERS, drop_nos, self.partner_no, vouchers, moment)
        await self.pool.execute("VACUUM ANALYZE vouchers")
        return drop_nos

    @staticmethod
    async def _until(holds: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if await holds():
                    return
                await asyncio.sleep(POLL_S)


async def _has(well: Receiver, vouchers: int) -> bool:
    return await well.count() >= vouchers


@asynccontextmanager
async def ledgers(directory: Path, names: Sequence[str]) -> AsyncIterator[list[BenchLedger]]:
    """One Postgres server with a fresh, migrated ledger for each name.

    Raises:
        couponsvc.engines.errors.EngineError: it does not start.
    """
    server = EmbeddedPostgres(make_data_dir(directory / "postgres", Account.current()))
    await server.start_async()
    try:
        async with AsyncExitStack() as stack:
            found = []
            for name in names:
                dsn = await _new_database(server, name)
                pool = await stack.enter_async_context(
                    await open_pool(dsn, max_size=2, statement_timeout_ms=int(PATIENCE_S * 1000))
                )
                ledger = BenchLedger(dsn, pool, server.pid or 0)
                await ledger.prepare()
                found.append(ledger)
            yield found
    finally:
        await server.stop_async()


async def _new_database(server: EmbeddedPostgres, name: str) -> str:
    connection = await asyncpg.connect(server.maintenance_dsn)
    try:
        await connection.execute(f'CREATE DATABASE "bench_{name}"')
    finally:
        await connection.close()
    dsn = server.dsn_of(f"bench_{name}")
    await migrate(dsn)
    return dsn


@asynccontextmanager
async def relay(dsn: str) -> AsyncIterator[int]:
    """A `couponsvc relay` process; its id."""
    environment = os.environ | {
        "COUPONSVC_POSTGRES_DSN": dsn,
        "COUPONSVC_REDIS_URL": NO_REDIS,
        "COUPONSVC_MASTER_KEY": MASTER_KEY,
        "COUPONSVC_WEBHOOK_ALLOW_PRIVATE": "true",
        "COUPONSVC_LOG_LEVEL": "warning",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "couponsvc", "relay", env=environment, stdout=sys.stderr
    )
    try:
        yield process.pid
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
