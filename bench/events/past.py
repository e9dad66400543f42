"""One relay's rate with millions of old events and attempts in the tables, beside none."""

from statistics import median
from time import perf_counter
from typing import Final

from bench.events.figure import Figure
from bench.events.ledger import BenchLedger, Drained, ledgers
from bench.events.receiving import receiver
from bench.place import run_directory
from bench.targets import Say
from couponsvc.outbox.ledger_clock import utc_now
from couponsvc.outbox.partitions import EVENTS_PER_PARTITION_COUNT, tend_partitions

TARGET: Final = 0.9
CPU_TARGET: Final = 1.1
"""Carries over from a busy machine, where rates do not."""
PER_EVENT: Final = 100
VOUCHERS: Final = 150_000
OLD_DROPS_COUNT: Final = 40
CHUNK_COUNT: Final = 250_000
"""Old events written in one statement."""

_OLD_EVENTS = """
INSERT INTO events (event_no, partner_no, drop_no, sequence, type, first_seq, last_seq, voucher_count,
                    occurred_at)
SELECT n, $1, n % $4 + 1, n / $4 + 1, 'voucher.issued', n, n + 99, 100,
       now() - interval '20 days' + n * interval '100 milliseconds'
FROM generate_series($2::bigint, $3::bigint) AS n
"""
_OLD_ATTEMPTS = """
INSERT INTO delivery_attempts (subscription_no, event_no, attempt_no, attempted_at, took_ms, status, outcome)
SELECT 1, n, 1, date_trunc('day', now()) + (n % 86400) * interval '1 second', 12, 204, 'delivered'
FROM generate_series($1::bigint, $2::bigint) AS n
"""
_COUNT_UP = "UPDATE event_counter SET last_event_no = $1"


async def measure(say: Say, rounds: int, old_count: int) -> list[Figure]:
    """Seed one of two ledgers, then work off the same backlog in both, in turn."""
    found: dict[str, list[Drained]] = {"past": [], "empty": []}
    with run_directory() as directory:
        async with receiver() as well, ledgers(directory, ["past", "empty"]) as (past, empty):
            by_name = {"past": past, "empty": empty}
            began = perf_counter()
            await _seed(past, old_count)
            seeded_s = perf_counter() - began
            say(f"past: seeded {old_count:,} events and as many attempts in {seeded_s:.0f} s")
            for ledger in by_name.values():
                await ledger.subscribe(well)
                await ledger.drain(well, vouchers=20_000, per_event=PER_EVENT)
                await well.forget_drops()
            for number in range(rounds):
                for name in sorted(by_name, reverse=number % 2 == 0):
                    drained = await by_name[name].drain(well, vouchers=VOUCHERS, per_event=PER_EVENT)
                    await well.forget_drops()
                    found[name].append(drained)
                    say(f"past: {name}: {drained.describe()}")
    pairs = list(zip(found["past"], found["empty"], strict=True))
    rate = median(p.vouchers_per_s / e.vouchers_per_s for p, e in pairs)
    cpu = median((p.relay_us + p.postgres_us) / (e.relay_us + e.postgres_us) for p, e in pairs)
    detail = "; ".join(
        f"{name} {median(d.vouchers_per_s for d in of_name):,.0f} vouchers/s,"
        f" relay {median(d.relay_us for d in of_name):.1f} µs,"
        f" Postgres {median(d.postgres_us for d in of_name):.1f} µs"
        for name, of_name in found.items()
    )
    beside = f"with {old_count / 1e6:g} M old events and attempts : empty"
    return [
        Figure(
            f"a relay's rate {beside}", rate, "", f"{detail}; seeded in {seeded_s:.0f} s", at_least=TARGET
        ),
        Figure(f"CPU of relay and Postgres per voucher {beside}", cpu, "", "as above", at_most=CPU_TARGET),
    ]


async def _seed(ledger: BenchLedger, count: int) -> None:
    for first in range(1, count + 1, CHUNK_COUNT):
        last = min(first + CHUNK_COUNT - 1, count)
        if (first - 1) % EVENTS_PER_PARTITION_COUNT == 0 or first == 1:
            await tend_partitions(ledger.pool, utc_now(), events_kept_days=0, attempts_kept_days=30)
        await ledger.pool.execute(_OLD_EVENTS, ledger.partner_no, first, last, OLD_DROPS_COUNT)
        await ledger.pool.execute(_OLD_ATTEMPTS, first, last)
        await ledger.pool.execute(_COUNT_UP, last)
    await ledger.pool.execute("VACUUM ANALYZE events, delivery_attempts, event_counter")
