"""An hour of the whole service under load with a fault a minute: `python -m tests.faults.soak --minutes 60`.

Every minute is a round on the same deployment: drops of its own, a crowd, one fault of one kind, then
everything is judged as after any schedule, and the service is measured at rest. At the end, what must
not grow is compared between the first and the last third. Faults end no process whose number is 0, so
that there is something to compare; those of number 1 and both servers are fair game.
"""

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from tests.faults.harness.deployment import Deployment
from tests.faults.harness.fault_kinds import KINDS, OURS, Capabilities, possible
from tests.faults.harness.measuring import Growth, Sample, judge_growth, take_sample
from tests.faults.harness.plan import Fault, Plan, make_plan
from tests.faults.harness.results import keep
from tests.faults.harness.run import Run

FIRST_SEED: Final = 900_000
"""Far from the seeds of single schedules: numbers of a deployment are used once."""
ROUND_S: Final = 60.0
"""From one fault to the next."""
PRESS_MIN_S, PRESS_MAX_S = 15.0, 40.0
"""Of each minute: the rest is selling out, asking everything again, judging and measuring, and how long
that takes is a matter of the machine. What the last round needed for it, the next one leaves."""
FIRST_PRESS_S: Final = 30.0
UNTIL_FAULT_S: Final = 3.0
"""At least: a little normal work before it."""
REST_S: Final = 1.0
"""Before measuring, for what follows the last answer."""


class Soak(msgspec.Struct, kw_only=True):
    """What an hour came to."""

    minutes: float
    seed: int
    rounds: int
    confirmed_vouchers: int
    calls: int
    faults: dict[str, int]
    violations: list[str]
    growth: list[Growth]
    samples: list[Sample]


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak, print, and say by the exit code whether everything held."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("var/faults"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    done = uvloop.run(soak(options.minutes, options.seed, options.out))
    (options.out / f"soak-{options.seed}.json").write_bytes(msgspec.json.format(msgspec.json.encode(done)))
    grown = [growth for growth in done.growth if growth.excessive]
    for growth in done.growth:
        _say(f"{growth.what}: {growth.first:g} -> {growth.last:g}" + (" GREW" if growth.excessive else ""))
    _say(
        f"{done.rounds} rounds in {done.minutes:.0f} min, {sum(done.faults.values())} faults, "
        f"{done.confirmed_vouchers} vouchers confirmed, {len(done.violations)} violations, {len(grown)} grew"
    )
    return 1 if done.violations or grown else 0


async def soak(minutes: float, seed: int, out_dir: Path) -> Soak:
    """Run rounds until the time is over."""
    base = Path(tempfile.mkdtemp(prefix="couponsvc-soak-"))
    base.chmod(0o711)
    done = Soak(
        minutes=0,
        seed=seed,
        rounds=0,
        confirmed_vouchers=0,
        calls=0,
        faults={},
        violations=[],
        growth=[],
        samples=[],
    )
    try:
        async with Deployment(base, with_replica=True) as deployment:
            began_s = time.monotonic()
            press_s = FIRST_PRESS_S
            while (round_began_s := time.monotonic()) - began_s < minutes * 60:
                await _round(deployment, done, base, out_dir, press_s)
                done.samples.append(await take_sample(deployment, time.monotonic() - began_s))
                press_s = next_press_s(press_s, time.monotonic() - round_began_s)
            done.minutes = round((time.monotonic() - began_s) / 60, 1)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    done.growth = judge_growth(done.samples)
    return done


async def _round(deployment: Deployment, done: Soak, base: Path, out_dir: Path, press_s: float) -> None:
    plan = make_round(done.seed, done.rounds, press_s, Capabilities(clocks=False))
    began_s = time.monotonic()
    # A book of its own: with one for all, every round would ask the numbers of all before it again.
    found = await Run(deployment, plan, base / f"numbers-{done.rounds}.tsv").carry_out()
    result = found.result
    if result.violations:
        keep(out_dir / f"soak-{done.seed}-round-{done.rounds + 1}", deployment.log_paths(), plan, found)
    done.rounds += 1
    done.confirmed_vouchers += result.confirmed_vouchers
    done.calls += result.calls
    for kind, times in result.faults.items():
        done.faults[kind] = done.faults.get(kind, 0) + times
    done.violations += [f"round {done.rounds}: {text}" for text in result.violations]
    _say(
        f"round {done.rounds} ({plan.faults[0]}): {result.confirmed_vouchers} vouchers, "
        f"{len(result.violations)} violations, {time.monotonic() - began_s:.0f} s "
        f"of which {press_s:.0f} s of pressing"
    )
    for text in result.violations:
        _say(f"  {text}")
    await asyncio.sleep(REST_S)


def next_press_s(press_s: float, round_s: float) -> float:
    """How long the next round may press, after one of `round_s` that pressed for `press_s`."""
    return round(min(max(ROUND_S - (round_s - press_s), PRESS_MIN_S), PRESS_MAX_S), 1)


def make_round(seed: int, number: int, press_s: float, capabilities: Capabilities) -> Plan:
    """The plan of one minute: one fault, kinds in turn, never of a process that is to be compared."""
    kinds = [name for name in possible(capabilities) if name != "all of a kind killed"]
    dice = random.Random(f"soak {seed} {number // len(kinds)}")  # noqa: S311 - a schedule is no secret
    dice.shuffle(kinds)
    name = kinds[number % len(kinds)]
    dice = random.Random(f"soak {seed} round {number}")  # noqa: S311
    kind = KINDS[name]
    details = kind.details(dice)
    while _ends_the_compared(details):
        details = kind.details(dice)
    at_s = round(dice.uniform(UNTIL_FAULT_S, press_s / 2), 2)
    lasts_s = round(min(dice.uniform(*kind.lasts_s), press_s - at_s), 2)
    fault = Fault(name, at_s, lasts_s, details)
    plan = make_plan(FIRST_SEED + 1_000 * seed + number, press_s, capabilities)
    return msgspec.structs.replace(plan, faults=[fault])


def _ends_the_compared(details: dict[str, str | float]) -> bool:
    """Whether a fault may end one of the processes that are to live for the whole hour."""
    member = str(details.get("member", ""))
    return (member.endswith("0") and member[:-1] in OURS) or details.get("order") in {"kill", "raise"}


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
