"""`python -m bench.events`: what it costs to tell partners, one figure a line."""

import argparse
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import uvloop

from bench import closed_loop
from bench.events import effect, harm, lag, past, rate
from bench.events.figure import Figure
from bench.session import say

NAMES: Final = ("effect", "lag", "harm", "rate", "past")


async def measure(options: argparse.Namespace) -> list[Figure]:
    """Measure what was asked for, in a fixed order."""
    rounds, window_s = options.rounds, options.seconds
    benches: dict[str, Callable[[], Awaitable[list[Figure]]]] = {
        "effect": lambda: effect.measure(say, rounds, window_s),
        "lag": lambda: lag.measure(say),
        "harm": lambda: harm.measure(say, rounds),
        "rate": lambda: rate.measure(say),
        "past": lambda: past.measure(say, rounds, options.events),
    }
    found: list[Figure] = []
    for name in NAMES:
        if name in options.only:
            figures = await benches[name]()
            for figure in figures:
                print(figure.line(), flush=True)
            found += figures
    return found


def main() -> int:
    """Measure and print; 1 where a target is missed, 2 where `wrk` is missing."""
    parser = argparse.ArgumentParser(prog="python -m bench.events", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES)
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each state (3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a round of the closed loop (3)")
    parser.add_argument("--events", type=int, default=10_000_000, help="of the long past (10,000,000)")
    parser.add_argument("--out", type=Path, help="also write the figures there, as JSON")
    options = parser.parse_args()
    reason = closed_loop.missing()
    if reason is not None:
        say(f"python -m bench.events: {reason}")
        return 2
    figures = uvloop.run(measure(options))
    if options.out:
        options.out.write_text(json.dumps([figure._asdict() for figure in figures], indent=1), "utf-8")
    return int(any(figure.verdict == "MISSED" for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
