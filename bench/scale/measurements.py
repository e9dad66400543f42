"""Which targets there are, and which of them share a service."""

from collections.abc import Collection
from typing import Final

from bench.scale import full_ledger, holder_memory, latency, many_drops, overload
from bench.scale.service import running
from bench.targets import Say, TargetResult

NAMES: Final = ("memory", "latency", "overload", "drops", "ledger")
"""In the order in which they are measured: those on one service first, overload last of them."""


async def run(say: Say) -> list[TargetResult]:
    """Measure every target of scale, about four minutes.

    Raises:
        bench.scale.rounds.WrongAnswers, bench.closed_loop.LoopFailed: a round means nothing.
        couponsvc.demo.stack.StackFailed: the service does not start.
    """
    return await measure_targets(say, NAMES)


async def measure_targets(
    say: Say, names: Collection[str], *, vouchers: int = full_ledger.VOUCHERS
) -> list[TargetResult]:
    """Measure the named ones; `vouchers`: how many the full ledger has."""
    results: list[TargetResult] = []
    if not {"memory", "latency", "overload"}.isdisjoint(names):
        with running() as service:
            async with service:
                if "memory" in names:
                    results.append(await holder_memory.measure(service, say))
                if "latency" in names:
                    results.append(await latency.measure(service, say))
                if "overload" in names:
                    results += await overload.measure(service, say)
    if "drops" in names:
        results.append(await many_drops.measure(say))
    if "ledger" in names:
        results.append(await full_ledger.measure(say, vouchers))
    return results
