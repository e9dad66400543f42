"""One round of load on a service, and rounds of two services in turn.

Every round checks what it was answered: with stock for all and a new person each, every grab must be
confirmed, and Postgres must have issued exactly as many vouchers as answers promised.
"""

import os
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from bench.closed_loop import RAMP_S, run_wrk
from bench.cpu import read_processes
from bench.request_file import write_requests
from bench.scale.service import Service
from bench.targets import Say
from couponsvc.demo.cpu import cpu_seconds, spent

CONNECTIONS: Final = 256
WINDOW_S: Final = 3.0
WARM_UP_COUNT: Final = 3_000
ROUNDS: Final = 3
FIRST_GUESS_PER_S: Final = 9_000.0
SPARE: Final = 1.35
"""More requests than the last rate needs; where they run out, the window is a little shorter."""


class WrongAnswers(RuntimeError):
    """Something else was answered than what must be; the figures mean nothing."""


class Round(NamedTuple):
    """What one round of the closed loop measured."""

    per_s: float
    """Confirmed vouchers a second."""
    p99_ms: float
    cpu_us: Mapping[str, float]
    """Microseconds per voucher by process."""


class Pair(NamedTuple):
    """Rounds of two services in turn."""

    subject: list[Round]
    baseline: list[Round]

    @property
    def ratio(self) -> float:
        """Median of the ratios of neighbouring rounds: what slows both at once cancels out."""
        return median(s.per_s / b.per_s for s, b in zip(self.subject, self.baseline, strict=True))

    def describe(self, subject: str, baseline: str) -> str:
        """Rates and CPU of both, for a target's detail."""
        return f"{describe(subject, self.subject)}; {describe(baseline, self.baseline)}"


def describe(name: str, rounds: Sequence[Round]) -> str:
    """Median rate, its spread, and median CPU of all processes together."""
    rates = [r.per_s for r in rounds]
    cpu_us = median(sum(r.cpu_us.values()) for r in rounds)
    spread = f"{min(rates):,.0f}-{max(rates):,.0f}"
    return f"{name} {median(rates):,.0f}/s ({spread}), {cpu_us:.0f} µs CPU per voucher"


async def closed_round(
    service: Service, drop_ids: Sequence[str], seed: str, *, count: int, window_s: float = WINDOW_S
) -> Round:
    """Drive the service as fast as it goes for a while.

    Args:
        service: Idle, its drops open.
        drop_ids: Grabbed from in turn; they must have stock for `count` more.
        seed: Makes persons; another one for every round.
        count: Requests prepared.
        window_s: How long.

    Raises:
        WrongAnswers: a grab was refused, or vouchers and answers are not as many.
        bench.closed_loop.LoopFailed: requests were left unanswered.
    """
    with request_file(service, drop_ids, count, seed) as path:
        issued = await service.issued(drop_ids)
        cpu_s = cpu_seconds(service.root_pid)
        result = await run_wrk(service.url, path, connections=CONNECTIONS, window_s=window_s)
        await service.settled()
        used_s = spent(cpu_s, cpu_seconds(service.root_pid))
        issued = await service.issued(drop_ids) - issued
    if result.refused or issued != result.answered:
        raise WrongAnswers(f"{result.answered} answers, {result.refused} refused, {issued} vouchers issued")
    cpu_us = {kind: seconds * 1e6 / issued for kind, seconds in used_s.items()}
    return Round(result.requests_per_s, result.p99_ms, cpu_us)


@contextmanager
def request_file(service: Service, drop_ids: Sequence[str], count: int, seed: str) -> Iterator[Path]:
    """Signed grabs in a file, removed afterwards; to be sent within five minutes."""
    with tempfile.TemporaryDirectory(prefix="couponsvc-bench-") as directory:
        path = Path(directory) / "requests"
        write_requests(path, service.grabs(drop_ids, count, seed))
        yield path


async def in_turn(
    subject: Service,
    subject_drops: Sequence[str],
    baseline: Service,
    baseline_drops: Sequence[str],
    *,
    rounds: int = ROUNDS,
    say: Say,
) -> Pair:
    """Warm both up, then measure them in turn; whoever is not measured is paused.

    Raises:
        WrongAnswers, bench.closed_loop.LoopFailed: see `closed_round`.
    """
    pair = Pair([], [])
    for service, drops in ((subject, subject_drops), (baseline, baseline_drops)):
        await closed_round(service, drops, "warm-up", count=WARM_UP_COUNT, window_s=WINDOW_S)
    guess = FIRST_GUESS_PER_S
    for number in range(rounds):
        turns = [
            (baseline, baseline_drops, subject, pair.baseline),
            (subject, subject_drops, baseline, pair.subject),
        ]
        for service, drops, other, into in turns if number % 2 == 0 else reversed(turns):
            with paused(other):
                await service.awake()
                count = int(guess * (WINDOW_S + RAMP_S) * SPARE)
                into.append(await closed_round(service, drops, f"round-{number}", count=count))
            shares = ", ".join(f"{kind} {us:.0f}" for kind, us in into[-1].cpu_us.items())
            say(f"{describe('subject' if into is pair.subject else 'baseline', into[-1:])}: {shares}")
        guess = max(r.per_s for r in pair.subject + pair.baseline)
    return pair


@contextmanager
def paused(service: Service) -> Iterator[None]:
    """Stop every process of a service for a while, its engines included; it must be at rest."""
    stopped = _tree(service.root_pid)
    for pid in stopped:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(stopped):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _tree(root_pid: int) -> list[int]:
    """A process and all below it, parents first."""
    children: dict[int, list[int]] = {}
    for pid, process in read_processes().items():
        children.setdefault(process.parent, []).append(pid)
    tree = [root_pid]
    for pid in tree:
        tree += children.get(pid, ())
    return tree
