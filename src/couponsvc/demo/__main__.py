"""`python -m couponsvc.demo`, the same as `couponsvc demo`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from couponsvc.demo.command import DemoOptions, run_demo


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the options, run the demo, return its exit code."""
    parser = argparse.ArgumentParser(prog="couponsvc demo", description="A rush on a real program.")
    default = DemoOptions()
    parser.add_argument("--persons", type=_positive, default=default.persons)
    parser.add_argument("--processes", type=_positive, default=default.processes)
    parser.add_argument("--workers", type=_positive, default=default.workers)
    parser.add_argument("--keep", action="store_true", help="keep serving afterwards")
    parser.add_argument("--partner", action="store_true", help="a subscribed partner receives the events")
    parser.add_argument("--kill", action="store_true", help="the relay and the partner are killed at random")
    parser.add_argument("--data-dir", type=Path, default=None, help="kept; without it a temporary one")
    given = parser.parse_args(arguments)
    if given.kill and not given.partner:
        parser.error("--kill needs --partner")
    return run_demo(DemoOptions(**vars(given)))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
