"""Throughput with thousands of drops defined and hundreds open, beside a single one."""

from typing import Final

from bench.scale.rounds import in_turn
from bench.scale.service import running
from bench.targets import Say, TargetResult

NAME: Final = "throughput with 2,000 drops defined and 200 open : one"
TARGET: Final = 0.9
DEFINED_COUNT: Final = 2_000
OPEN_COUNT: Final = 200
STOCK: Final = 1_000_000
ONE: Final = "the-only-one"


async def measure(say: Say) -> TargetResult:
    """Define the drops of one of two services, then drive them in turn; grabs go to all open drops."""
    drops = [(f"drop-{place:04d}", STOCK, place < OPEN_COUNT) for place in range(DEFINED_COUNT)]
    with running() as many, running() as one:
        async with many, one:
            await one.define([(ONE, STOCK, True)])
            await many.define(drops)
            for service in (one, many):
                await service.at_rest()
            say(f"{DEFINED_COUNT:,} drops are loaded")
            pair = await in_turn(
                many, [drop_id for drop_id, _, is_open in drops if is_open], one, [ONE], say=say
            )
    detail = pair.describe("many", "one")
    return TargetResult(NAME, pair.ratio, TARGET, at_least=True, unit="", detail=detail)
