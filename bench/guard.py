"""`python -m bench.guard`: has a grab become dearer than the committed baseline says?

Compared is CPU per request **in units of the raw ASGI echo's**, measured in the same run: most of a
machine's own speed cancels out, so that a baseline taken elsewhere still means something. It takes
minutes and wants a quiet machine: run by hand or at night, never as a timed test.
"""

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import uvloop

from bench.contenders import ALTERNATIVES
from bench.machine import describe_machine
from bench.ours import our_names
from bench.place import run_directory
from bench.report import RowReport, report_row
from bench.session import Plan, measure, say
from couponsvc.demo.stack import StackFailed
from couponsvc.engines.errors import EngineError

BASELINE: Final = Path(__file__).with_name("baseline.json")
ECHO: Final = "raw-asgi"
SUM: Final = "sum"
TOLERANCE: Final = 0.15
"""How much dearer a row may be: two to three times what rounds of one row differ among themselves."""
ROUNDS: Final = 3
WINDOW_S: Final = 3.0
CONNECTIONS: Final = 256
OK, WRONG, UNREACHABLE = 0, 1, 3

Ratios = Mapping[str, float]
"""By kind of process and `SUM`: CPU per request over the echo's."""


class Baseline(msgspec.Struct, frozen=True):
    """What was accepted; committed beside this file."""

    taken_at: str
    machine: dict[str, Any]
    connections: int
    echo_us: float
    """CPU of the echo per request, where and when this was taken."""
    rows: dict[str, dict[str, float]]


class Worse(NamedTuple):
    """A row that became dearer than it may.

    Attributes:
        row: Its name.
        was: Its sum in the baseline, over the echo's.
        now: Its sum now, over the echo's.
        grown: Kind of process → by how much it grew, over the echo's; largest first, only what grew.
    """

    row: str
    was: float
    now: float
    grown: Mapping[str, float]

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} +{by:.2f}" for kind, by in self.grown.items())
        return f"{self.row}: {self.was:.2f} → {self.now:.2f} echoes (+{self.now / self.was - 1:.0%}): {kinds}"


def ratios_of(row: RowReport, echo: RowReport) -> dict[str, float]:
    """A row's CPU per request by kind of process and in sum, in units of the echo's.

    Raises:
        ValueError: one of the two was not measured soundly, so that nothing may be concluded.
    """
    for each in (row, echo):
        if not each.sound or each.cpu_sum_us <= 0:
            raise ValueError(f"{each.name} was not measured: {each.failure or each.violations}")
    unit = echo.cpu_sum_us
    return {**{kind: us / unit for kind, us in row.cpu_us.items()}, SUM: row.cpu_sum_us / unit}


def compare(
    baseline: Mapping[str, Ratios], now: Mapping[str, Ratios], tolerance: float = TOLERANCE
) -> list[Worse]:
    """Rows whose sum is more than `tolerance` above the baseline's; rows without a baseline are left out.

    Raises:
        ValueError: a row of the baseline is missing now.
    """
    missing = sorted(baseline.keys() - now.keys())
    if missing:
        raise ValueError(f"not measured: {', '.join(missing)}")
    worse = []
    for name, was in baseline.items():
        current = now[name]
        if current[SUM] > was[SUM] * (1 + tolerance):
            grown = {
                kind: ratio - was.get(kind, 0.0)
                for kind, ratio in current.items()
                if kind != SUM and ratio > was.get(kind, 0.0)
            }
            ordered = dict(sorted(grown.items(), key=lambda item: -item[1]))
            worse.append(Worse(name, was[SUM], current[SUM], ordered))
    return worse


def read_baseline(path: Path) -> Baseline:
    """Read a baseline.

    Raises:
        ValueError: there is none, or it is none.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Baseline)
    except FileNotFoundError:
        raise ValueError(f"no {path.name}: make one with `python -m bench.guard --accept`") from None
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path} is no baseline: {error}") from None


async def measure_now(rounds: int, window_s: float) -> Baseline:
    """Measure the echo and all our rows.

    Raises:
        ValueError: a row failed or what must hold does not.
        StackFailed, EngineError: our own service does not start.
    """
    plan = Plan(rounds, window_s, CONNECTIONS)
    echo_contender = [contender for contender in ALTERNATIVES if contender.name == ECHO]
    with run_directory() as directory:
        machine = describe_machine(directory)
        outcome = await measure(plan, echo_contender, our_names(), directory)
    echo, *ours = [report_row(measured) for measured in outcome.measured]
    return _baseline(datetime.now(UTC).isoformat(timespec="seconds"), machine, CONNECTIONS, echo, ours)


class _Results(msgspec.Struct, frozen=True):
    """What is read of a results file."""

    taken_at: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    rows: list[RowReport]


def of_results(path: Path) -> Baseline:
    """The same from the results of a whole run of the bench, whose rounds are more and longer.

    Raises:
        ValueError: it cannot be read, has no echo, or a row of ours did not hold.
    """
    try:
        results = msgspec.json.decode(path.read_bytes(), type=_Results)
    except (OSError, msgspec.MsgspecError) as error:
        raise ValueError(f"{path} has no results: {error}") from None
    rows = {row.name: row for row in results.rows}
    if ECHO not in rows:
        raise ValueError(f"{path} has no row {ECHO}")
    return _baseline(
        results.taken_at,
        results.machine,
        int(results.settings["connections"]),
        rows[ECHO],
        [rows[name] for name in our_names() if name in rows],
    )


def _baseline(
    taken_at: str, machine: dict[str, Any], connections: int, echo: RowReport, ours: Sequence[RowReport]
) -> Baseline:
    return Baseline(
        taken_at=taken_at,
        machine=machine,
        connections=connections,
        echo_us=round(echo.cpu_sum_us, 2),
        rows={row.name: {k: round(v, 4) for k, v in ratios_of(row, echo).items()} for row in ours},
    )


def render(baseline: Baseline | None, now: Baseline) -> str:
    """One line per row: what it costs, and what it cost."""
    lines = [f"{'CPU per request, in raw ASGI echoes':36} {'baseline':>9} {'now':>9} {'change':>8}"]
    for name, ratios in now.rows.items():
        was = baseline.rows.get(name, {}).get(SUM) if baseline is not None else None
        before, change = (f"{was:9.2f}", f"{ratios[SUM] / was - 1:+8.0%}") if was else (" " * 9, "     new")
        lines.append(f"{name:36} {before} {ratios[SUM]:9.2f} {change}")
    return "\n".join([*lines, f"one echo: {now.echo_us:.1f} µs"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, or accept; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.guard", description=__doc__)
    parser.add_argument("--accept", action="store_true", help="write what is measured as the new baseline")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=WINDOW_S)
    parser.add_argument(
        "--results", type=Path, help="take a results file of `python -m bench`, measure nothing"
    )
    parser.add_argument("--baseline", type=Path, default=BASELINE)
    options = parser.parse_args(arguments)
    try:
        baseline = None if options.accept else read_baseline(options.baseline)
        if options.results is not None:
            now = of_results(options.results)
        else:
            now = uvloop.run(measure_now(options.rounds, options.seconds))
        return conclude(options.baseline, baseline, now)
    except ValueError as error:
        say(f"python -m bench.guard: {error}")
        return WRONG
    except (StackFailed, EngineError) as error:
        say(f"python -m bench.guard: {error}")
        return UNREACHABLE
    except (KeyboardInterrupt, asyncio.CancelledError):
        say("python -m bench.guard: stopped")
        return WRONG


def conclude(path: Path, baseline: Baseline | None, now: Baseline) -> int:
    """Print the comparison with a baseline, or without one write it anew; the exit code.

    Raises:
        ValueError: a row of the baseline is missing now.
    """
    print(render(baseline, now))
    if baseline is None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(now), indent=1) + b"\n")
        print(f"accepted: {path.name}; commit it with the change that explains it")
        return OK
    worse = compare(baseline.rows, now.rows)
    for row in worse:
        print(f"WORSE {row}")
    return WRONG if worse else OK


if __name__ == "__main__":
    sys.exit(main())
