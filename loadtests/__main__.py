"""`python -m loadtests COMMAND`: everything about load tests but locust itself."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Final

COMMANDS: Final = ("prepare", "run", "judge")
"""Modules of `loadtests.commands`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtests", description="Load tests with a verdict.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"loadtests.commands.{name}")
        says = (module.__doc__ or "").splitlines()[0]
        subparser = subparsers.add_parser(name, help=says, description=module.__doc__)
        module.add_options(subparser)
        subparser.set_defaults(run=module.run)
    given = parser.parse_args(arguments)
    code: int = given.run(given)
    return code


if __name__ == "__main__":
    sys.exit(main())
