"""`python -m bench.scale`: the targets of scale alone, one line each."""

import argparse
import sys

import uvloop

from bench import closed_loop
from bench.scale import NAMES, full_ledger, measure_targets
from bench.session import say


def main() -> int:
    """Measure and print; 2 where `wrk` is missing."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES)
    )
    parser.add_argument("--vouchers", type=int, default=full_ledger.VOUCHERS, help="in the full ledger")
    options = parser.parse_args()
    reason = closed_loop.missing()
    if reason is not None:
        say(f"python -m bench.scale: {reason}")
        return 2
    for result in uvloop.run(measure_targets(say, options.only, vouchers=options.vouchers)):
        verdict = "met" if result.met else "MISSED"
        bound = "≥" if result.at_least else "≤"
        print(f"{verdict:6} {result.value:8.2f} {result.unit:5} ({bound} {result.target:g})  {result.name}")
        print(f"       {result.detail}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
