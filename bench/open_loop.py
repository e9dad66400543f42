"""An open-loop generator: requests leave when they are due, whatever became of those before.

A closed loop asks the next question only after the last answer, so a service that stalls is asked
less and looks fast (coordinated omission). Here arrival times are fixed beforehand, at even
distances or as a Poisson process, and a latency counts **from the moment the request was due**: what
waits for a free connection, or for this process, waits at the service's expense.

    result = await run("http://127.0.0.1:8000", requests, rate_per_s=2000, duration_s=5, connections=256)
    result = await run_apart("http://127.0.0.1:8000", path, rate_per_s=2000, duration_s=5, connections=256)

`run_apart` does the same in a process of its own with the requests in a file
(`bench.request_file`), so that its CPU is not the caller's. About 15 µs of CPU per request.
"""

import argparse
import asyncio
import gc
import json
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path
from time import process_time
from typing import Any, Final, NamedTuple

import uvloop

from bench.open_connection import Generator, split_address
from bench.request_file import read_requests

PATIENCE_S: Final = 5.0
"""How long answers are waited for after the last request was due; the service gives up at 2 s."""


class Latency(NamedTuple):
    """Times from due to answered. All 0 where nothing was answered."""

    samples_count: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


NO_LATENCY: Final = Latency(0, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class OpenLoopResult:
    """What came of a run.

    Attributes:
        due: Requests that were due: the rate times the duration (about that, for Poisson).
        sent: Requests that were written; below `due` if no connection got free in time.
        answered: Status → answers.
        answered_in_time: Status → answers that were complete when the last request was due; divided
            by `duration_s`, the rate at which the service kept answering.
        latency: Of all answers after the lead-in.
        latency_by_status: Of the answers with each status.
        late_sends: Requests written more than `open_connection.LATE_MS` after they were due, because
            every connection waited for an answer or this process was not given the CPU.
        behind_max_ms: The longest time by which this process woke too late: its own share of it.
        unanswered: Requests due without an answer: connection lost, never sent, or too slow.
        duration_s: From the first to the last due time.
        cpu_s: CPU that the generator spent.
        lead_in: Latency of the answers in the lead-in, whatever their status.
    """

    due: int
    sent: int
    answered: Mapping[int, int]
    answered_in_time: Mapping[int, int]
    latency: Latency
    latency_by_status: Mapping[int, Latency]
    late_sends: int
    behind_max_ms: float
    unanswered: int
    duration_s: float
    cpu_s: float = field(default=0.0)
    lead_in: Latency = NO_LATENCY

    def to_json(self) -> str:
        """One line that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "OpenLoopResult":
        """Read what `to_json` wrote."""
        found: dict[str, Any] = json.loads(text)
        for name in ("answered", "answered_in_time"):
            found[name] = {int(status): count for status, count in found[name].items()}
        found["latency"] = Latency(*found["latency"])
        found["lead_in"] = Latency(*found["lead_in"])
        by_status = found["latency_by_status"].items()
        found["latency_by_status"] = {int(status): Latency(*latency) for status, latency in by_status}
        return cls(**found)


def due_times(rate_per_s: float, duration_s: float, *, poisson: bool = False, seed: int = 1) -> list[float]:
    """Seconds after the start at which requests are due, ascending, all below `duration_s`."""
    if not poisson:
        return [place / rate_per_s for place in range(ceil(rate_per_s * duration_s))]
    draw = random.Random(seed).expovariate  # noqa: S311 - arrivals, not secrets
    times, at = [], draw(rate_per_s)
    while at < duration_s:
        times.append(at)
        at += draw(rate_per_s)
    return times


async def run(
    url: str,
    requests: Sequence[bytes],
    *,
    rate_per_s: float,
    duration_s: float,
    connections: int,
    poisson: bool = False,
    seed: int = 1,
    patience_s: float = PATIENCE_S,
    lead_in_s: float = 0.0,
) -> OpenLoopResult:
    """Send each request once when it is due; wait for the answers that are still to come.

    Args:
        url: `http://host:port`.
        requests: Whole raw requests, at least as many as will be due; the rest is not sent.
        rate_per_s: Arrivals per second.
        duration_s: For how long requests arrive.
        connections: Opened beforehand; each carries one request at a time.
        poisson: Arrivals at random with that mean rate, instead of evenly spaced.
        seed: Of the random arrivals.
        patience_s: How long to wait for answers after the last request was due.
        lead_in_s: What is due in these first seconds is answered and counted, but its latency apart.

    Raises:
        ValueError: too few requests, or `url` is no address.
        OSError: no connection can be made.
    """
    times = due_times(rate_per_s, duration_s, poisson=poisson, seed=seed)
    if len(times) > len(requests):
        raise ValueError(f"{len(times)} requests will be due, only {len(requests)} are there")
    cpu_at = process_time()
    generator = Generator(split_address(url), requests, times, lead_in_s=lead_in_s)
    try:
        await generator.connect(connections)
        await generator.send_all(patience_s)
    finally:
        generator.close()
    return _result(generator, len(times), duration_s, process_time() - cpu_at)


async def run_apart(
    url: str,
    requests_path: Path,
    *,
    rate_per_s: float,
    duration_s: float,
    connections: int,
    poisson: bool = False,
    seed: int = 1,
    patience_s: float = PATIENCE_S,
    lead_in_s: float = 0.0,
) -> OpenLoopResult:
    """As `run`, in a process of its own, the requests in a file.

    Raises:
        RuntimeError: it failed; ends with its last words.
    """
    command = [sys.executable, "-m", "bench.open_loop", url, str(requests_path)]
    command += ["--rate", str(rate_per_s), "--seconds", str(duration_s), "--connections", str(connections)]
    command += ["--seed", str(seed), "--patience", str(patience_s), *(["--poisson"] if poisson else [])]
    command += ["--lead-in", str(lead_in_s)]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        lines = err.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise RuntimeError(f"the open-loop generator failed: {lines[-1]}")
    return OpenLoopResult.from_json(out.decode())


def _result(generator: Generator, due: int, duration_s: float, cpu_s: float) -> OpenLoopResult:
    answered = dict(sorted(generator.counts.items()))
    return OpenLoopResult(
        due=due,
        sent=generator.sent,
        answered=answered,
        answered_in_time=dict(sorted(generator.in_time.items())),
        latency=latency_of(ms for times in generator.latencies_ms.values() for ms in times),
        latency_by_status={status: latency_of(times) for status, times in generator.latencies_ms.items()},
        late_sends=generator.late_sends,
        behind_max_ms=generator.behind_max_ms,
        unanswered=due - sum(answered.values()),
        duration_s=duration_s,
        cpu_s=cpu_s,
        lead_in=latency_of(generator.lead_in_ms),
    )


def latency_of(times_ms: Iterable[float]) -> Latency:
    """Exact percentiles: the smallest value that at least such a share does not exceed."""
    ordered = sorted(times_ms)
    if not ordered:
        return NO_LATENCY

    def at(share: float) -> float:
        return ordered[max(0, ceil(len(ordered) * share) - 1)]

    return Latency(len(ordered), at(0.5), at(0.9), at(0.99), at(0.999), ordered[-1])


def main() -> None:
    """Run once; the result as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.open_loop", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("requests", type=Path, help="file as bench.request_file writes it")
    parser.add_argument("--rate", type=float, required=True, help="requests per second")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--poisson", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--patience", type=float, default=PATIENCE_S)
    parser.add_argument("--lead-in", type=float, default=0.0, help="seconds whose latency counts apart")
    options = parser.parse_args()
    gc.disable()  # lists of numbers and bytes; nothing here makes cycles
    result = uvloop.run(
        run(
            options.url,
            list(read_requests(options.requests)),
            rate_per_s=options.rate,
            duration_s=options.seconds,
            connections=options.connections,
            poisson=options.poisson,
            seed=options.seed,
            patience_s=options.patience,
            lead_in_s=options.lead_in,
        )
    )
    print(result.to_json())


if __name__ == "__main__":
    main()
