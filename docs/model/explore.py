# ruff: noqa: INP001, T201, S603, S607 - a program that prints and starts spin, gcc and what they make
"""Explores the models with spin: every promise holds, and every rule is missed when it is removed.

    python docs/model/explore.py [--only WORD] [--jobs N]

Prints a line per variant; exit code 1 where any one is other than expected, 2 where a tool is missing.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

HERE: Final = Path(__file__).resolve().parent
CACHE: Final = HERE.parents[1] / ".cache" / "spin"
DEPTH_MAX: Final = 20_000
MEMORY_MAX_MB: Final = 2_000
PATIENCE_S: Final = 100.0
COMPILE: Final = ("-O1", "-w", "-DSAFETY", f"-DMEMLIM={MEMORY_MAX_MB}", "-DVECTORSZ=1024")
HOLDS, FAILS = "holds", "fails"


class Variant(NamedTuple):
    """One exploration."""

    model: str
    setting: str
    """Definitions that size the model."""
    without: str = ""
    """Rules that are removed; none: everything must hold."""
    expected: str = FAILS
    why: str = ""
    """Of a removal that passes: what else keeps the promise."""


class Finding(NamedTuple):
    """What an exploration found."""

    verdict: str
    states: int
    depth: int
    seconds: float
    detail: str


ISSUING: Final = "QUANTITY=1"
LOSING: Final = "TRIES=1 CRASHES=0 ONE_DRAINER RESTOCKS=1"
ASKING_AGAIN: Final = "TRIES=2 CRASHES=0 ONE_DRAINER"
REBUILDING: Final = "TRIES=1 CRASHES=0 WHIMS=2"
OPENING: Final = "OPENING TRIES=1 CRASHES=0 WHIMS=0"
RESTOCKING: Final = "CRASHES=1 WHIMS=0"
LOWERING: Final = "LOWERING QUANTITY=2 CRASHES=1 WHIMS=1"
REVOKING: Final = "CRASHES=1 WHIMS=1"


def _removals(model: str, setting: str, rules: str) -> list[Variant]:
    return [Variant(model, setting, rule) for rule in rules.split()]


VARIANTS: Final = [
    Variant("issuing", ISSUING, expected=HOLDS),
    Variant("issuing", "QUANTITY=2 TRIES=1", expected=HOLDS),
    *_removals(
        "issuing",
        ISSUING,
        "COMMIT_FIRST COMMIT_BEFORE_TELLING CONFIRMED_MEANS_COMMITTED RETURN_TOKEN PERSON_GUARD"
        " JOURNAL_IN_THE_SAME_STEP",
    ),
    Variant("issuing", "QUANTITY=2", "HOLDERS_CHECK"),
    Variant("losing", LOSING, expected=HOLDS),
    Variant("losing", "TRIES=1 CRASHES=1", expected=HOLDS),
    *_removals(
        "losing",
        LOSING,
        "RUN_ID_FENCE EPOCH_FENCE PERSON_GUARD LOOKS EXAMINATION MISSING_IS_NOT_ZERO"
        " EPOCH_AT_ACKNOWLEDGEMENT RAISE_BEFORE_READING VERSION_TOLD",
    ),
    Variant("losing", ASKING_AGAIN, expected=HOLDS),
    Variant("losing", ASKING_AGAIN, "SOURCE_FENCE"),
    Variant("losing", LOSING, "QUANTITY_GUARD", HOLDS, "SOURCE_FENCE: Postgres moves under no examination"),
    Variant("losing", LOSING, "QUANTITY_GUARD SOURCE_FENCE"),
    Variant("losing", LOSING, "NO_RETURN_OF_PHANTOMS", HOLDS, "it is drift already, and a look rebuilds it"),
    Variant("losing", LOSING, "FENCE", HOLDS, "the epoch in Postgres refuses what the gate still grants"),
    Variant("rebuilding", REBUILDING, expected=HOLDS),
    Variant("rebuilding", "TRIES=1 CRASHES=1 WHIMS=1", expected=HOLDS),
    *_removals("rebuilding", REBUILDING, "PUBLISH_COMPARE_AND_SET EPOCH_FENCE RAISE_BEFORE_READING"),
    Variant("rebuilding", REBUILDING, "RAISE_COMPARE_AND_SET", HOLDS, "raising adds one, so nobody shares"),
    Variant("rebuilding", REBUILDING, "RAISE_IN_ONE_STEP", HOLDS, "two with one epoch: HOLDERS_COUNTED"),
    Variant("rebuilding", REBUILDING, "RAISE_IN_ONE_STEP HOLDERS_COUNTED"),
    Variant("rebuilding", OPENING, expected=HOLDS),
    *_removals("rebuilding", OPENING, "PUBLISH_COMPARE_AND_SET UNLOAD_LOOKS_FIRST"),
    Variant("changing", RESTOCKING, expected=HOLDS),
    Variant("changing", LOWERING, expected=HOLDS),
    *_removals("changing", RESTOCKING, "RESTOCK_COMMITTED_FIRST ROW_LOCK"),
    *_removals("changing", LOWERING, "TAKING_FIRST VERSIONS"),
    Variant("returning", "", expected=HOLDS),
    *_removals("returning", "", "QUANTITY_GUARD PERSON_GUARD EPOCH_FENCE SOURCE_FENCE RUN_ID_FENCE"),
    Variant("revoking", REVOKING, expected=HOLDS),
    *_removals("revoking", REVOKING, "LEDGER_FIRST NOTE_AS_TOKEN COMMITTED_NOTE REVOKED_IS_NO_REPLAY"),
]


def find_spin() -> str | None:
    """Path of spin: installed, or fetched once from Debian without being root; None: neither."""
    fetched = CACHE / "usr/bin/spin"
    found = shutil.which("spin") or (str(fetched) if fetched.exists() else None)
    if found or not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return found
    CACHE.mkdir(parents=True, exist_ok=True)
    fetch = subprocess.run(
        ["apt-get", "download", "-qq", "spin"], cwd=CACHE, check=False, capture_output=True
    )
    for package in CACHE.glob("spin_*.deb") if fetch.returncode == 0 else ():
        subprocess.run(["dpkg-deb", "-x", str(package), str(CACHE)], check=True)
    return str(fetched) if fetched.exists() else None


def explore(spin: str, variant: Variant) -> Finding:
    """Generate, compile and run one verifier."""
    removed = [f"WITHOUT_{rule}" for rule in variant.without.split()]
    definitions = [f"-D{name}" for name in (*variant.setting.split(), *removed)]
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        command = [spin, "-a", *definitions, str(HERE / f"{variant.model}.pml")]
        made = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
        if made.returncode or "rror" in made.stdout:
            return Finding("broken", 0, 0, 0.0, made.stdout.strip()[:300])
        subprocess.run(["gcc", *COMPILE, "-o", "pan", "pan.c"], cwd=folder, check=True)
        began = time.monotonic()
        try:
            run = subprocess.run(
                ["./pan", f"-m{DEPTH_MAX}", "-w22"],
                cwd=folder, check=False, capture_output=True, text=True, timeout=PATIENCE_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Finding("too large", 0, 0, PATIENCE_S, "")
        return _read(run.stdout, time.monotonic() - began)


def _read(output: str, seconds: float) -> Finding:
    """Read what the verifier printed; whatever it did not finish is no proof."""
    errors = re.search(r"errors: (\d+)", output)
    states = re.search(r"(\d+) states, stored", output)
    depth = re.search(r"depth reached (\d+)", output)
    if (
        not (errors and states and depth)
        or "max search depth too small" in output
        or "out of memory" in output
    ):
        return Finding("unfinished", 0, 0, seconds, output.strip()[-300:])
    first = re.search(r"pan:1: (.*) \(at depth (\d+)\)", output)
    if first:
        return Finding(FAILS, int(states[1]), int(first[2]), seconds, first[1])
    return Finding(HOLDS, int(states[1]), int(depth[1]), seconds, "")


def main() -> int:
    """Explore every variant, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="models or rules whose name has this word in it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    spin = find_spin()
    if spin is None or shutil.which("gcc") is None:
        print("the models need spin and gcc: apt-get install spin gcc", file=sys.stderr)
        return 2
    chosen = [v for v in VARIANTS if options.only in f"{v.model} {v.without}"]
    print(f"{'model':<11} {'without':<34} {'expected':<8} {'found':<8} {'states':>9} {'depth':>5} {'s':>5}")
    began, surprises = time.monotonic(), 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for variant, found in zip(chosen, pool.map(lambda v: explore(spin, v), chosen), strict=True):
            surprise = found.verdict != variant.expected
            surprises += surprise
            note = f"<- {found.detail or 'a surprise'}"[:300] if surprise else variant.why
            tried = f"{variant.model:<11} {variant.without.lower() or '-':<34} {variant.expected:<8}"
            got = f"{found.verdict:<8} {found.states:>9,} {found.depth:>5} {found.seconds:>5.1f}"
            print(f"{tried} {got}  {note}".rstrip(), flush=True)
    seconds = time.monotonic() - began
    print(f"{len(chosen)} explorations in {seconds:.0f} s, {surprises} other than expected")
    return 1 if surprises else 0


if __name__ == "__main__":
    sys.exit(main())
