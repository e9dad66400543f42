"""`python -m tests.fuzz [--seconds N] [TARGET …]`: look for inputs that contradict what the targets assert.

With atheris (libFuzzer) where it is installed, which mutates by what code an input reaches; else with
Hypothesis, which does not. New inputs are kept in var/fuzz; the one that fails is printed and saved.
`--keep` adds the shortest that reached something new to tests/fuzz/corpus, where a test replays them.
"""

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.fuzz.corpus import keep, seeds_of
from tests.fuzz.targets import TARGETS

KEPT: Final = Path("var/fuzz")
INPUT_MAX_BYTES: Final = 4_096
KEPT_MAX_COUNT: Final = 40
KEPT_MAX_BYTES: Final = 1_000
"""Of an input in the repository: longer ones are copies of seeds with more of the same."""
START_S: Final = 30
"""A process may take this long beyond its time: instrumenting imports takes seconds."""


def main() -> int:
    """Run each target for its share of the time; 1 where one fails."""
    arguments = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    arguments.add_argument("targets", nargs="*", default=[], metavar="TARGET", help=", ".join(TARGETS))
    arguments.add_argument("--seconds", type=int, default=60, help="for all targets together")
    arguments.add_argument("--keep", action="store_true", help="add to tests/fuzz/corpus; needs atheris")
    given = arguments.parse_args()
    if unknown := set(given.targets) - TARGETS.keys():
        arguments.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    names = given.targets or list(TARGETS)
    share_s = max(1, given.seconds // len(names))
    by_coverage = importlib.util.find_spec("atheris") is not None
    failed = [name for name in names if not (_by_coverage if by_coverage else _at_random)(name, share_s)]
    if given.keep and by_coverage:
        for name in names:
            _keep_found(name)
    print(f"{len(names)} targets, {share_s} s each, {'atheris' if by_coverage else 'Hypothesis'}:", end=" ")  # noqa: T201
    print(f"failed: {', '.join(failed)}" if failed else "nothing found")  # noqa: T201
    return 1 if failed else 0


def _by_coverage(name: str, seconds: int) -> bool:
    kept = KEPT / name
    kept.mkdir(parents=True, exist_ok=True)
    for place, seed in enumerate(seeds_of(name)):
        (kept / f"seed-{place}").write_bytes(seed)
    command = [sys.executable, "-m", "tests.fuzz.instrumented", name, str(kept)]
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={INPUT_MAX_BYTES}",
        "-timeout=5",
        "-print_final_stats=1",
    ]
    place_of_failure = f"-artifact_prefix={KEPT}/{name}-"
    done = subprocess.run(  # noqa: S603 - our own interpreter and module
        [*command, *options, place_of_failure],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds + START_S,
        check=False,
    )
    runs = [line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line]
    print(f"{name}: {runs[0] if runs else 'no'} inputs")  # noqa: T201
    if done.returncode:
        print(done.stdout[-2_000:], done.stderr[-3_000:])  # noqa: T201
    return done.returncode == 0


def _keep_found(name: str) -> None:
    """Keep the shortest inputs of those that reached something new when they were found."""
    found = sorted((path.read_bytes() for path in (KEPT / name).iterdir()), key=len)
    keep(name, [data for data in found if len(data) <= KEPT_MAX_BYTES][:KEPT_MAX_COUNT])


def _at_random(name: str, seconds: int) -> bool:
    from tests.fuzz.at_random import run_for  # noqa: PLC0415 - the other way needs no Hypothesis

    try:
        print(f"{name}: {run_for(name, seconds)} inputs")  # noqa: T201
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        print(f"{name}: {type(error).__name__}: {error}")  # noqa: T201
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
