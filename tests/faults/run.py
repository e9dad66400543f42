"""Many seeds, one after the other: `python -m tests.faults.run --first-seed 1 --seeds 500 --seconds 20`.

One line of JSON per seed goes to `<out>/results.jsonl` and, shortened, to the terminal. Exit code 1 if
any promise was broken; what is needed to find out why is then in `<out>/seed-<n>/`.
"""

import argparse
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import uvloop

from tests.faults.harness.fault_kinds import KINDS, Capabilities
from tests.faults.harness.plan import CrowdPlan, Plan, make_counted_plan, make_plan, with_crowd
from tests.faults.harness.results import Result, judge_again
from tests.faults.harness.series import PlanMaker, Series

GC_THRESHOLD: Final = 200_000
"""Hundreds of thousands of records that live to the end: looking for cycles among them costs a stall."""
INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the seeds that the command line names."""
    options = _options(arguments)
    if options.judge is not None:
        report = judge_again(options.judge)
        _print(report.text() or f"every promise kept: {report.checked}")
        return 1 if report.violations else 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it otherwise
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))  # end tidily, either way
    if options.jobs > 1:
        return _side_by_side(options, list(sys.argv[1:] if arguments is None else arguments))
    gc.set_threshold(GC_THRESHOLD, 50, 50)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        return uvloop.run(_run(options))
    except KeyboardInterrupt:
        return INTERRUPTED


def _side_by_side(options: argparse.Namespace, arguments: list[str]) -> int:
    """Deal the seeds out to processes of this same command; each has deployments of its own."""
    jobs = []
    for place in range(min(options.jobs, options.seeds)):
        own = range(options.first_seed + place, options.first_seed + options.seeds, options.jobs)
        deal = f"--jobs 1 --first-seed {own[0]} --seeds {len(own)} --step {options.jobs}"
        # Of an option that is given twice the last one counts.
        command = [sys.executable, "-m", "tests.faults.run", *arguments, *deal.split()]
        jobs.append(subprocess.Popen(command))  # noqa: S603
    try:
        return max(job.wait() for job in jobs)
    except KeyboardInterrupt:
        for job in jobs:
            job.terminate()
        return max(job.wait() for job in jobs)


async def _run(options: argparse.Namespace) -> int:
    seeds = range(options.first_seed, options.first_seed + options.seeds * options.step, options.step)
    series = Series(
        options.out,
        per_deployment_count=options.per_deployment,
        keep_all=options.keep,
        source=options.source,
        say=_print,
    )
    makers: list[PlanMaker] = [partial(_planned, seed=seed, options=options) for seed in seeds]
    broken, confirmed_count, began_s = [], 0, time.monotonic()
    with (options.out / "results.jsonl").open("a") as results:
        async for result in series.run(makers):
            result.crowd = _crowd(options)
            results.write(result.text() + "\n")
            results.flush()
            confirmed_count += result.confirmed_vouchers
            _say(result)
            if result.violations:
                broken.append(result.seed)
    took_s = time.monotonic() - began_s
    _print(
        f"{len(seeds)} seeds, {confirmed_count} vouchers confirmed, {len(broken)} seeds with violations, "
        f"{took_s:.0f} s" + (f"; broken: {broken}" if broken else "")
    )
    return 1 if broken else 0


def _planned(capabilities: Capabilities, *, seed: int, options: argparse.Namespace) -> Plan:
    if options.only:
        plan = make_counted_plan(seed, options.only, options.times, options.every)
    else:
        plan = make_plan(seed, options.seconds, capabilities)
    return with_crowd(plan, CrowdPlan(options.lanes, options.pause, options.large_share, options.stock))


def _crowd(options: argparse.Namespace) -> str:
    """What has to be said again to have the same crowd; empty for the usual one."""
    usual = CrowdPlan()
    said = {
        "--lanes": (options.lanes, usual.lanes_count),
        "--pause": (options.pause, usual.pause_s),
        "--large-share": (options.large_share, usual.large_share),
        "--stock": (options.stock, usual.stock),
    }
    return " ".join(f"{name} {value:g}" for name, (value, default) in said.items() if value != default)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.run", description=__doc__)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1, help="how many, one after the other")
    parser.add_argument("--step", type=int, default=1, help="from one seed to the next")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, each in a process of its own")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long faults are planted in each")
    parser.add_argument("--only", choices=list(KINDS), help="this kind of fault again and again")
    parser.add_argument("--times", type=int, default=100, help="how often, with --only")
    parser.add_argument("--every", type=float, default=4.0, help="seconds from one to the next, with --only")
    crowd = CrowdPlan()
    parser.add_argument("--lanes", type=int, default=crowd.lanes_count, help="persons who press at a time")
    parser.add_argument("--pause", type=float, default=crowd.pause_s, help="seconds between two of them")
    parser.add_argument(
        "--large-share", type=float, default=crowd.large_share, help="who want what is never exhausted"
    )
    parser.add_argument("--stock", type=float, default=crowd.stock, help="of the usual quantities")
    parser.add_argument("--per-deployment", type=int, default=1, help="seeds that share one deployment")
    parser.add_argument("--out", type=Path, default=Path("var/faults"))
    parser.add_argument("--source", type=Path, help="run the service from there instead of src")
    parser.add_argument("--keep", action="store_true", help="keep history and logs of good runs too")
    parser.add_argument("--judge", type=Path, help="judge again what a run left in this directory")
    return parser.parse_args(arguments)


def _say(result: Result) -> None:
    healed_s = max(result.sold_out_after_heal_s.values(), default=-1)
    _print(
        f"seed {result.seed}: {result.confirmed_vouchers} vouchers, {result.calls} calls, "
        f"{sum(result.faults.values())} faults, {result.rebuilds} rebuilds, "
        f"{sum(result.restarts.values())} restarts, ready {result.ready_after_heal_s:.1f} s and sold out "
        f"{healed_s:.1f} s after healing: "
        + (f"{len(result.violations)} VIOLATIONS" if result.violations else "every promise kept")
    )
    if result.unchecked_windows:
        _print(f"  in {result.unchecked_windows} times without a checked Redis: {result.unchecked_answers}")
    for failure in result.fault_failures:
        _print(f"  not carried out: {failure}")
    if result.violations:
        for line in result.violations:
            _print(f"  {line}")
        crowd = f" OPTIONS='{result.crowd}'" if result.crowd else ""
        _print(f"  again: make faults SEED={result.seed} SECONDS={result.seconds:g}{crowd}")


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
