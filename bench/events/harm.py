"""A receiver that is well, alone and beside others that are dead, silent, slow or dripping."""

from contextlib import AsyncExitStack
from statistics import median
from typing import Final

from bench.events.figure import Figure
from bench.events.lag import DROP_ID, SETTLE_S, open_round
from bench.events.receiving import BAD, Received, receiver
from bench.events.subscribed import subscribed_service
from bench.targets import Say

PER_S: Final = 500.0
ROUND_S: Final = 8.0
DEAD_URL: Final = "http://127.0.0.1:1024/dead"
"""Nobody listens there."""
ALONE: Final = "alone"
BESIDE: Final = "beside bad ones"
P50_TARGET: Final = 1.5
P99_TARGET: Final = 2.0


async def measure(say: Say, rounds: int) -> list[Figure]:
    """Rounds alone and beside, in turn; bad receivers are new in every round, so nothing spares them yet."""
    found: dict[str, list[Received]] = {ALONE: [], BESIDE: []}
    async with subscribed_service(DROP_ID) as subject, receiver() as bad, subject.subscription():
        await open_round(subject, PER_S, "warm-up", SETTLE_S)
        for number in range(rounds):
            for state in (ALONE, BESIDE) if number % 2 == 0 else (BESIDE, ALONE):
                async with AsyncExitStack() as stack:
                    if state == BESIDE:
                        for url in [DEAD_URL, *map(bad.url, BAD)]:
                            await stack.enter_async_context(subject.subscription(url))
                    received = await open_round(subject, PER_S, f"{state}-{number}", ROUND_S)
                found[state].append(received)
                say(f"harm: {state}: {received.lag}")
                await subject.nothing_in_flight()

    p50 = {state: [r.p50_ms for r in of_state] for state, of_state in found.items()}
    p99 = {state: [r.p99_ms for r in of_state] for state, of_state in found.items()}
    detail = "; ".join(
        f"{state} p50 {median(p50[state]):,.0f} ms, p99 {median(p99[state]):,.0f} ms" for state in found
    )
    name = "lag of a good receiver beside dead, silent, slow and dripping ones : alone"
    return [
        Figure(f"{name}: p50", _ratio(p50), "", detail, at_most=P50_TARGET),
        Figure(f"{name}: p99", _ratio(p99), "", "as above", at_most=P99_TARGET),
    ]


def _ratio(values: dict[str, list[float]]) -> float:
    return median(beside / alone for beside, alone in zip(values[BESIDE], values[ALONE], strict=True))
