"""Three times as many grabs as the service can confirm, for a while, whatever it answers.

What a drop's opening looks like from inside. The service should go on confirming at full rate, tell
the others at once that they should come back, and not pile up what it cannot do.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from bench.cpu import PROC, per_request, read_cpu
from bench.open_loop import OpenLoopResult, run_apart
from bench.scale.rounds import FIRST_GUESS_PER_S, SPARE, WARM_UP_COUNT, WINDOW_S, closed_round, request_file
from bench.scale.service import Service
from bench.service import find_roots
from bench.targets import Say, TargetResult

NAME: Final = "open loop at 3 x saturation: "
TARGET: Final = 0.9
REFUSED_TARGET_MS: Final = 100.0
GROWTH_TARGET_SHARE: Final = 0.05
LOAD: Final = 3.0
SECONDS: Final = 6.0
CONNECTIONS: Final = 4_000
"""A bank's gateway under a rush; with fewer, waiting for a free one would hide the overload."""
HOLDER_MAX_BYTES: Final = 220
"""What a voucher may explain of Redis' growth: the target of `bench.scale.holder_memory`."""
SAMPLE_S: Final = 0.25
CREATED, REFUSED = 201, 503
DROP_ID: Final = "overrun"
STOCK: Final = 2_000_000
PROBES: Final = 10
NOTHING_REFUSED: Final = "nothing was refused: the excess waited in the generator, not here; "
"""Then the service was never asked for more than its connections carry, and the figures prove little."""


class Sample(NamedTuple):
    """Resident memory by kind of process, and vouchers issued until then."""

    resident_bytes: Mapping[str, int]
    issued: int


async def measure(service: Service, say: Say) -> list[TargetResult]:
    """Find saturation, then send three times as much."""
    await service.define([(DROP_ID, STOCK, True)])
    await closed_round(service, [DROP_ID], "overload-warm-up", count=WARM_UP_COUNT)
    count = int(FIRST_GUESS_PER_S * WINDOW_S * SPARE)
    saturation = (await closed_round(service, [DROP_ID], "overload-saturation", count=count)).per_s
    roots = find_roots(service.root_pid)
    with request_file(service, [DROP_ID], int(saturation * LOAD * SECONDS) + 1, "overload") as path:
        cpu = read_cpu(roots)
        load = asyncio.create_task(
            run_apart(
                service.url, path, rate_per_s=saturation * LOAD, duration_s=SECONDS, connections=CONNECTIONS
            )
        )
        samples, told = await asyncio.gather(_sample_until(service, roots, load), _probe_until(service, load))
        result = await load
    answered = sum(result.answered.values())
    cpu_us = per_request(cpu, read_cpu(roots), answered)
    await service.settled()
    say(f"overload: {_describe(result, saturation)}; CPU µs per answer {_round(cpu_us)}; {told}")
    return _judge(result, saturation, samples, told)


def _judge(
    result: OpenLoopResult, saturation: float, samples: Sequence[Sample], told: str
) -> list[TargetResult]:
    per_s = result.answered_in_time.get(CREATED, 0) / SECONDS
    refused = result.latency_by_status.get(REFUSED)
    growth, kind = _growth(samples)
    facts = _describe(result, saturation)
    unproven = "" if refused else NOTHING_REFUSED
    p99_ms = refused.p99_ms if refused else result.latency.p99_ms
    whose = "" if refused else "value is p99 of all answers; "
    grown = f"in the second half, most by {kind}, beyond {HOLDER_MAX_BYTES} bytes per voucher held"
    return [
        TargetResult(
            NAME + "confirmed : saturation", per_s / saturation, TARGET,
            at_least=True, unit="", detail=unproven + facts,
        ),
        TargetResult(
            NAME + "p99 of refusals", p99_ms, REFUSED_TARGET_MS,
            at_least=False, unit="ms", detail=unproven + whose + told,
        ),
        TargetResult(
            NAME + "growth of memory", growth, GROWTH_TARGET_SHARE,
            at_least=False, unit="", detail=unproven + grown,
        ),
    ]  # fmt: skip


def _describe(result: OpenLoopResult, saturation: float) -> str:
    confirmed = result.latency_by_status.get(CREATED)
    p99 = f"{confirmed.p99_ms:,.0f} ms" if confirmed else "none"
    return (
        f"saturation {saturation:,.0f}/s, answers {dict(result.answered)}, {result.unanswered} unanswered,"
        f" p99 of confirmed {p99}, generator late {result.late_sends:,} of {result.due:,}"
    )


def _round(cpu_us: Mapping[str, float]) -> dict[str, int]:
    return {kind: round(us) for kind, us in cpu_us.items()}


async def _sample_until(
    service: Service, roots: Mapping[str, Sequence[int]], load: "asyncio.Task[OpenLoopResult]"
) -> list[Sample]:
    samples = []
    while not load.done():
        resident = {kind: sum(map(_resident_bytes, roots[kind])) for kind in ("api", "drain", "redis")}
        samples.append(Sample(resident, await service.issued([DROP_ID])))
        await asyncio.sleep(SAMPLE_S)
    return samples


def _resident_bytes(pid: int) -> int:
    status = (PROC / str(pid) / "status").read_text("ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


async def _probe_until(service: Service, load: "asyncio.Task[OpenLoopResult]") -> str:
    """Ask beside the crowd, now and then, to see what a refusal says; the generator reads statuses only."""
    refusals, without = 0, 0
    for place in range(PROBES):
        await asyncio.sleep(SECONDS / PROBES)
        if load.done():
            break
        answer = await service.grab(DROP_ID, f"p-probe-{place}", f"probe-{place}")
        if answer.status == REFUSED:
            refusals += 1
            without += answer.outcome != "overloaded" or answer.retry_after_s is None
    return f"{refusals} of {PROBES} probes refused, {without} of them without `overloaded` and Retry-After"


def _growth(samples: Sequence[Sample]) -> tuple[float, str]:
    """The largest unexplained growth in the second half, as a share, and whose it is."""
    steady = [sample for sample in samples if sample.issued > samples[0].issued] or list(samples)
    half = len(steady) // 2
    middle, end = steady[half], steady[-1]
    explained = {"redis": (end.issued - middle.issued) * HOLDER_MAX_BYTES}
    shares = {
        kind: (end.resident_bytes[kind] - before - explained.get(kind, 0)) / before
        for kind, before in middle.resident_bytes.items()
    }
    worst = max(shares, key=lambda kind: shares[kind])
    return max(0.0, shares[worst]), worst
