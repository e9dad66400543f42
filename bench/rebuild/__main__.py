"""`python -m bench.rebuild`: how long the gate is closed after a restart of Redis, one figure a line."""

import argparse
import sys
from typing import Final

import uvloop

from bench.events.figure import Figure
from bench.rebuild.ground import prepared
from bench.session import say

HOLDERS_TARGET_S: Final = 5.0
"""Per million holders (flow.md, 5)."""
DROPS_TARGET_S: Final = 2.0
SMALL_DROP_COUNT: Final = 100
"""Vouchers of one of many drops."""
ROUNDS: Final = 3


async def one_large_drop(holders: int) -> list[Figure]:
    """A wiped Redis and one drop with so many holders; then the same with its data kept."""
    async with prepared([holders]) as ground:
        await ground.restart(keep_data=False)  # the first load: caches are cold, nobody waits
        lost = [await ground.restart(keep_data=False) for _ in range(ROUNDS)]
        kept = await ground.restart(keep_data=True)
    best = min(lost, key=lambda closed: closed.all_s)
    say(f"each: {', '.join(f'{closed.all_s:.2f}' for closed in lost)} s")
    target = HOLDERS_TARGET_S * max(holders / 1e6, 0.1)
    return [
        Figure(f"Redis lost, {holders:,} holders: closed", best.all_s, "s", best.describe(), at_most=target),
        Figure(f"Redis restarted, {holders:,} holders: closed", kept.sound_s, "s", kept.describe()),
    ]


async def many_drops(drops: int) -> list[Figure]:
    """A Redis that comes back with its data, with one drop lost, and with none of them."""
    quantities = [SMALL_DROP_COUNT] * drops
    async with prepared(quantities) as ground:
        await ground.restart(keep_data=False)
        sound = await ground.restart(keep_data=True)
        mixed = await ground.restart(keep_data=True, lose=["drop-0000", "drop-0001"])
        lost = await ground.restart(keep_data=False)
    name = f"{drops:,} drops"
    return [
        Figure(f"{name}, all sound: closed", sound.sound_s, "s", sound.describe(), at_most=DROPS_TARGET_S),
        Figure(f"{name}, two lost: the others closed", mixed.sound_s, "s", mixed.describe()),
        Figure(f"{name}, all lost: the last one closed", lost.all_s, "s", lost.describe()),
    ]


async def measure(options: argparse.Namespace) -> list[Figure]:
    """Measure what was asked for."""
    found = []
    if options.holders:
        found += await one_large_drop(options.holders)
    if options.drops:
        found += await many_drops(options.drops)
    return found


def main() -> int:
    """Measure and print; 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.rebuild", description=__doc__)
    parser.add_argument("--holders", type=int, default=1_000_000, help="of one drop (1,000,000); 0: not")
    parser.add_argument("--drops", type=int, default=2_000, help="of a shard (2,000); 0: not")
    figures = uvloop.run(measure(parser.parse_args()))
    for figure in figures:
        print(figure.line())
    return int(any(figure.verdict == "MISSED" for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
