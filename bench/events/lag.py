"""How old news is when it arrives, below saturation: alone at a low rate, and at a steady load."""

import asyncio
from typing import Final

from bench.events.figure import Figure
from bench.events.receiving import Received, WrongDeliveries
from bench.events.subscribed import SubscribedService, subscribed_service
from bench.open_loop import run_apart
from bench.scale.rounds import CONNECTIONS, WrongAnswers, request_file
from bench.targets import Say
from couponsvc.demo.cpu import cpu_seconds, spent

DROP_ID: Final = "news"
CREATED: Final = 201
ALONE_PER_S: Final = 20.0
STEADY_PER_S: Final = 2_000.0
ROUND_S: Final = 8.0
IDLE_S: Final = 4.0
SETTLE_S: Final = 2.0


async def measure(say: Say) -> list[Figure]:
    """Two rates, and what the relay costs where nothing happens."""
    figures: list[Figure] = []
    async with subscribed_service(DROP_ID) as subject, subject.subscription():
        await open_round(subject, STEADY_PER_S / 2, "warm-up", SETTLE_S)
        for name, per_s in (("alone", ALONE_PER_S), ("steady", STEADY_PER_S)):
            received = await open_round(subject, per_s, name, ROUND_S)
            say(f"lag: {name}: {received.lag}")
            title = f"lag at {per_s:,.0f} vouchers/s, commit to receipt"
            detail = f"{received.events} events, {received.vouchers} vouchers, {received.lag}"
            figures += [
                Figure(f"{title}: p50", received.p50_ms, "ms", detail),
                Figure(f"{title}: p99", received.p99_ms, "ms", "as above"),
            ]
        figures += await _idle(subject)
    return figures


async def open_round(subject: SubscribedService, per_s: float, seed: str, duration_s: float) -> Received:
    """Grabs at a fixed rate; what the receiver says, once everything was delivered.

    Raises:
        WrongAnswers, WrongDeliveries: the figures mean nothing.
    """
    service = subject.service
    with request_file(service, [DROP_ID], int(per_s * duration_s) + 1, seed) as path:
        await subject.well.report()
        result = await run_apart(
            service.url, path, rate_per_s=per_s, duration_s=duration_s, connections=CONNECTIONS
        )
    if result.unanswered or set(result.answered) != {CREATED}:
        raise WrongAnswers(f"{result.answered} answers, {result.unanswered} unanswered, all should be 201")
    await subject.heard(result.due)
    received = await subject.well.report()
    if received.vouchers != result.due or received.missing:
        raise WrongDeliveries(f"{result.due} vouchers were issued; received: {received}")
    return received


async def _idle(subject: SubscribedService) -> list[Figure]:
    await asyncio.sleep(SETTLE_S)
    before = cpu_seconds(subject.service.root_pid)
    await asyncio.sleep(IDLE_S)
    used_s = spent(before, cpu_seconds(subject.service.root_pid))
    shares = {kind: seconds / IDLE_S * 1000 for kind, seconds in used_s.items()}
    detail = ", ".join(f"{kind} {ms:.1f}" for kind, ms in shares.items())
    return [Figure("relay with nothing to do: CPU a second", shares.get("relay", 0.0), "ms", detail)]
