"""`python -m bench.outage`: Postgres is killed in mid-rush, stays away for minutes, and comes back."""

import argparse
import asyncio
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from tempfile import mkdtemp
from time import monotonic
from typing import Final, NamedTuple

import uvloop

from bench.events.figure import Figure
from bench.outage.load import Load
from bench.outage.watching import Sample, Watch, told
from bench.scale.service import SHARD, Service
from bench.session import say
from couponsvc import limits
from couponsvc.demo.stack import Stack
from couponsvc.engines.account import Account
from couponsvc.engines.place import make_data_dir
from couponsvc.engines.postgres import EmbeddedPostgres
from couponsvc.reconcile.check import DRAINED, check, check_stream
from couponsvc.support.postgres import open_pool
from couponsvc.values import keys

DROP_ID: Final = "outage"
STOCK: Final = 8_000_000
BEFORE_S: Final = 15.0
RETURN_TARGET_S: Final = 60.0
RETURN_PATIENCE_S: Final = 180.0
AFTER_S: Final = 10.0
GROWTH_TARGET_MB: Final = 300.0
"""100,000 grants: some 60 MB in Redis, and as many waiting in the API processes."""
POLL_S: Final = 0.1
WORKERS: Final = 2
LOG_KINDS_COUNT: Final = 6
_EVENT: Final = re.compile(r"\] (.+?)  *\[\w+\]")
NEVER: Final = ("closed", "lost", "sold_out", "sold_out_pending", "mismatch", "person_limit")
"""Answers that no grab of a new person may get while the stock lasts and Redis is well."""


class Course(NamedTuple):
    """What happened when, by `monotonic`, and what was seen."""

    gone_at: float
    back_at: float
    confirmed_s: float
    """From the return until every grant of the outage was confirmed."""
    answers: Counter[int]
    told: Counter[str]
    issued: int
    drift: int
    watch: Watch
    kept: Counter[str]


async def measure(seconds: float, rate_per_s: float) -> list[Figure]:
    """Drive a service through an outage.

    Raises:
        TimeoutError: the backlog was not confirmed in time.
    """
    base = Path(mkdtemp(prefix="couponsvc-bench-"))
    base.chmod(0o711)
    postgres = EmbeddedPostgres(make_data_dir(base / "data", Account.current()))
    try:
        await postgres.start_async()
        with Stack(None, WORKERS, {"COUPONSVC_POSTGRES_DSN": postgres.dsn}) as stack:
            async with Service(stack) as service:
                course = await _go_through(service, postgres, seconds, rate_per_s)
                lines = (stack.temporary / "up.log").read_text("utf-8", "replace").splitlines()
                kinds = Counter(_EVENT.findall("\n".join(lines))).most_common(LOG_KINDS_COUNT)
                say(f"the service logged {len(lines):,} lines, most of all {dict(kinds)}")
    finally:
        await postgres.stop_async()
        shutil.rmtree(base)
    return _figures(course)


async def _go_through(
    service: Service, postgres: EmbeddedPostgres, seconds: float, rate_per_s: float
) -> Course:
    await service.define([(DROP_ID, STOCK, True)])
    load, watch = Load(service, DROP_ID, rate_per_s), Watch(service, DROP_ID)
    watching, loading = asyncio.create_task(watch.run()), asyncio.create_task(load.run())
    await asyncio.sleep(BEFORE_S)
    gone_at = monotonic()
    postgres.kill()
    say(f"Postgres is gone; {rate_per_s:,.0f} grabs a second go on")
    await asyncio.sleep(seconds)
    await postgres.start_async()
    back_at = monotonic()
    last_id = (await service.redis.xinfo_stream(keys.grants_key(SHARD)))["last-generated-id"]
    say(f"Postgres is back; grants up to {last_id.decode()} wait")
    await _until_settled(service, last_id)
    confirmed_s = monotonic() - back_at
    await asyncio.sleep(AFTER_S)
    load.end()
    answers = await loading
    watch.end()
    await watching
    await service.settled()
    counts = await told(service.url)
    kept = await watch.kept()
    pool = await open_pool(service.dsn, max_size=2, statement_timeout_ms=60_000)
    try:
        lines = await check(pool, service.redis)
        left = await check_stream(service.redis, SHARD)
    finally:
        await pool.close()
    drift = sum(line.drift for line in lines) + (left != DRAINED)
    issued = await service.issued([DROP_ID])
    return Course(gone_at, back_at, confirmed_s, answers, counts, issued, drift, watch, kept)


async def _until_settled(service: Service, last_id: bytes) -> None:
    """Wait until every grant up to an entry is off the stream."""
    async with asyncio.timeout(RETURN_PATIENCE_S):
        while True:
            if not await service.redis.xrange(keys.grants_key(SHARD), "-", last_id, count=1):
                return
            await asyncio.sleep(POLL_S)


def _figures(course: Course) -> list[Figure]:
    promised = course.answers[201] + course.answers[202]
    wrong = {kind: course.told[kind] for kind in NEVER if course.told[kind]}
    others = {status: n for status, n in course.answers.items() if status not in {0, 201, 202, 503}}
    during = [s for s in course.watch.samples if course.gone_at <= s.at < course.back_at]
    before = [s for s in course.watch.samples if s.at < course.gone_at]
    after = [s for s in course.watch.samples if s.at >= course.back_at]
    growth = {
        kind: _largest(during + after, kind) - _largest(before, kind) for kind in before[-1].resident_mb
    }
    worst = max(growth, key=lambda kind: growth[kind])
    outcomes = Counter(
        f"{p.status} {p.problem}" for p in course.watch.probes if course.gone_at <= p.at < course.back_at
    )
    return [
        Figure(
            "grants confirmed after the return of Postgres", course.confirmed_s, "s",
            f"backlog {max(s.backlog for s in during):,} at most (cap {limits.BACKLOG_MAX_COUNT:,})",
            at_most=RETURN_TARGET_S,
        ),
        Figure(
            "promised and not issued, or drift", max(0, promised - course.issued) + course.drift, "",
            f"answers {dict(sorted(course.answers.items()))} (0: none), issued {course.issued:,}, drift"
            f" {course.drift}; of the probes {dict(course.kept)}",
            at_most=0 if set(course.kept) == {"kept"} else -1,
        ),
        Figure(
            "wrong answers", sum(wrong.values()) + sum(others.values()), "",
            f"{wrong or others or 'none'}; probes during the outage: {dict(outcomes)}", at_most=0,
        ),
        Figure(
            "memory beyond that before", growth[worst], "MB",
            f"most by {worst}; MB before {_round(before[-1])}, at the end of the outage"
            f" {_round(during[-1])}, after {_round(after[-1])}",
            at_most=GROWTH_TARGET_MB,
        ),
    ]  # fmt: skip


def _largest(samples: list[Sample], kind: str) -> float:
    return max((sample.resident_mb.get(kind, 0.0) for sample in samples), default=0.0)


def _round(sample: Sample) -> dict[str, int]:
    return {kind: round(mb) for kind, mb in sample.resident_mb.items()}


def main() -> int:
    """Measure and print; 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.outage", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="without Postgres (300)")
    parser.add_argument("--rate", type=float, default=4_000.0, help="grabs a second (4,000)")
    options = parser.parse_args()
    figures = uvloop.run(measure(options.seconds, options.rate))
    for figure in figures:
        print(figure.line())
    return int(any(figure.verdict == "MISSED" for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
