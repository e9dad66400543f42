"""Throughput with millions of vouchers in the ledger, beside an empty one."""

from datetime import UTC, datetime
from typing import Final

import asyncpg

from bench.scale.past import plan_past
from bench.scale.rounds import in_turn
from bench.scale.seeding import Seeded, seed
from bench.scale.service import PROGRAM_ID, Service, running
from bench.targets import Say, TargetResult

NAME: Final = "throughput with {count} vouchers in the ledger : empty ledger"
TARGET: Final = 0.9
VOUCHERS: Final = 5_000_000
OWN_SHARE: Final = 0.3
"""Of the past: of the very program that goes on."""
NEWEST: Final = datetime(2026, 10, 7, 2, tzinfo=UTC)
DROP_ID: Final = "beside-a-past"
STOCK: Final = 1_000_000


async def measure(say: Say, vouchers: int = VOUCHERS) -> TargetResult:
    """Seed one of two services, then drive them in turn."""
    with running() as full, running() as empty:
        async with full, empty:
            seeded = await seed_service(full, vouchers)
            say(f"seeded {seeded.vouchers:,} vouchers in {seeded.total_s:.0f} s: {seeded}")
            for service in (empty, full):
                await service.define([(DROP_ID, STOCK, True)])
                await service.at_rest()
                await checkpoint(service)
            say("their holders are loaded and proven")
            pair = await in_turn(full, [DROP_ID], empty, [DROP_ID], say=say)
    detail = f"{pair.describe('full', 'empty')}; seeded in {seeded.total_s:.0f} s"
    count = f"{vouchers / 1e6:g} M"
    return TargetResult(NAME.format(count=count), pair.ratio, TARGET, at_least=True, unit="", detail=detail)


async def seed_service(service: Service, vouchers: int) -> Seeded:
    """Give a service a past. Redis follows by itself; see `Service.at_rest`."""
    past = plan_past(vouchers, PROGRAM_ID, int(vouchers * OWN_SHARE), NEWEST)
    return await seed(service.dsn, service.master_key, past, service.partner_id)


async def checkpoint(service: Service) -> None:
    """Write everything out, so that what follows is Postgres' most expensive moment, on purpose.

    The first touch of every page after a checkpoint goes into the log as a whole page.
    """
    connection = await asyncpg.connect(service.dsn)
    try:
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()
