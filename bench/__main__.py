"""`python -m bench`: every contender side by side in one run; a table, a file, a picture."""

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from bench import closed_loop
from bench.chart import render_chart
from bench.contenders import ALTERNATIVES
from bench.machine import describe_machine
from bench.ours import our_names
from bench.place import run_directory
from bench.profiling import Profiler
from bench.ratios import judge_targets
from bench.report import Report, TargetReport, report_row
from bench.session import Plan, measure, say
from bench.table import print_report
from bench.targets import TargetResult
from couponsvc.demo.stack import StackFailed
from couponsvc.engines.errors import EngineError

ROUNDS: Final = 3
WINDOW_S: Final = 3.0
OPEN_WINDOW_S: Final = 2.0
CONNECTIONS: Final = 256
OUT_DIR: Final = Path("var/bench")
SCALE: Final = "bench.scale"
OK, WRONG, USAGE, UNREACHABLE = 0, 1, 2, 3
"""Exit codes of the contract; a missed target is none, a row that failed or is violated is `WRONG`."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    names = [*(contender.name for contender in ALTERNATIVES), *our_names()]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=WINDOW_S, help="of each round")
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--workers", type=int, default=1, help="API processes of ours")
    parser.add_argument("--open-seconds", type=float, default=OPEN_WINDOW_S, help="0: no open loop")
    parser.add_argument("--skip-scale", action="store_true", help="without bench.scale")
    parser.add_argument("--out", type=Path, help="JSON file; the chart goes beside it")
    parser.add_argument("--profile", metavar="PY_SPY", help="path of py-spy: an extra round of ours under it")
    return parser.parse_args(arguments)


async def run(options: argparse.Namespace) -> Report:
    """Measure everything that was asked for.

    Raises:
        StackFailed, EngineError: our own service or an engine does not start.
    """
    began, taken_at = time.monotonic(), datetime.now(UTC)
    wanted = set(options.only or [contender.name for contender in ALTERNATIVES] + our_names())
    profiler = Profiler(options.profile, options.out.parent) if options.profile else None
    plan = Plan(
        options.rounds, options.seconds, options.connections, options.workers, options.open_seconds, profiler
    )
    alternatives = [contender for contender in ALTERNATIVES if contender.name in wanted]
    with run_directory() as directory:
        machine = describe_machine(directory)
        outcome = await measure(plan, alternatives, wanted & set(our_names()), directory)
    rows = [report_row(measured) for measured in outcome.measured]
    results, skipped = judge_targets(rows), outcome.skipped
    if not options.skip_scale and not options.only:
        try:
            results += await _scale()
        except Exception as error:  # noqa: BLE001 - five minutes of other figures must not be lost with it
            skipped[SCALE] = f"{type(error).__name__}: {error}"
            say(f"FAILED {SCALE}: {skipped[SCALE]}")
    settings = {
        name: getattr(options, name)
        for name in ("rounds", "seconds", "connections", "workers", "open_seconds")
    }
    return Report(
        taken_at=taken_at.isoformat(timespec="seconds"),
        command=" ".join(["python -m bench", *sys.argv[1:]]),
        machine=machine,
        settings=settings,
        rows=rows,
        skipped=skipped,
        targets=[TargetReport(*result, met=result.met) for result in results],
        took_s=time.monotonic() - began,
    )


async def _scale() -> list[TargetResult]:
    """What `bench.scale` finds out about large ledgers, many drops, overload."""
    from bench import scale  # noqa: PLC0415 - what it needs is not needed without it

    return await scale.run(say)


async def _until_told(options: argparse.Namespace) -> Report:
    """As `run`; SIGTERM ends it in order, so that nothing of it stays behind."""
    task = asyncio.create_task(run(options))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def main() -> int:
    """Run, write, print; the exit code."""
    options = parse()
    options.out = options.out or OUT_DIR / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    reason = closed_loop.missing()
    if reason is not None:
        say(f"python -m bench: {reason}")
        return USAGE
    options.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        report = uvloop.run(_until_told(options))
    except (StackFailed, EngineError) as error:
        say(f"python -m bench: {error}")
        return UNREACHABLE
    except (KeyboardInterrupt, asyncio.CancelledError):
        say("python -m bench: stopped, nothing was written")
        return WRONG
    options.out.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    chart = options.out.with_suffix(".svg")
    chart.write_text(render_chart(report), "utf-8")
    print_report(report)
    say(f"written to {options.out} and {chart}")
    sound = report.rows and all(row.sound for row in report.rows) and SCALE not in report.skipped
    return OK if sound else WRONG


if __name__ == "__main__":
    sys.exit(main())
