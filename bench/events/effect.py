"""Confirmed grabs with a subscription, without one, and with the relay paused, in turn on one service."""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from statistics import median
from time import time
from typing import Final, NamedTuple

from bench.closed_loop import RAMP_S, run_wrk
from bench.events.figure import Figure
from bench.events.receiving import Received, WrongDeliveries
from bench.events.subscribed import SubscribedService, subscribed_service
from bench.scale.rounds import CONNECTIONS, SPARE, WARM_UP_COUNT, WrongAnswers, request_file
from bench.targets import Say
from couponsvc.demo.cpu import cpu_seconds, spent

NAME: Final = "confirmed with a subscription : without"
TARGET: Final = 0.9
DROP_ID: Final = "told-of"
SUBSCRIBED: Final = "subscribed"
UNHEARD: Final = "no subscription"
PAUSED: Final = "relay paused"
STATES: Final = (SUBSCRIBED, UNHEARD, PAUSED)
FIRST_GUESS_PER_S: Final = 12_000.0


class EffectRound(NamedTuple):
    """One round of the closed loop, until its events are numbered, or delivered where somebody listens."""

    per_s: float
    cpu_us: Mapping[str, float]
    """Microseconds per voucher by process."""
    received: Received | None
    caught_up_s: float
    """How long after the last answer the last event was received."""


async def measure(say: Say, rounds: int, window_s: float) -> list[Figure]:
    """Rounds of all states in turn; the order changes so that none always follows the same."""
    found: dict[str, list[EffectRound]] = {state: [] for state in STATES}
    async with subscribed_service(DROP_ID) as subject:
        await _round(subject, SUBSCRIBED, "warm-up", count=WARM_UP_COUNT, window_s=window_s)
        guess = FIRST_GUESS_PER_S
        for number in range(rounds):
            for place in range(len(STATES)):
                state = STATES[(place + number) % len(STATES)]
                count = int(guess * (window_s + RAMP_S) * SPARE)
                result = await _round(subject, state, f"{state}-{number}", count=count, window_s=window_s)
                found[state].append(result)
                guess = max(guess, result.per_s)
                say(f"effect: {state}: {_describe([result])}")
    return _figures(found)


def _figures(found: Mapping[str, list[EffectRound]]) -> list[Figure]:
    def ratio(state: str, beside: str) -> float:
        return median(a.per_s / b.per_s for a, b in zip(found[state], found[beside], strict=True))

    detail = "; ".join(f"{state} {_describe(found[state])}" for state in STATES)
    heard = [r.received for r in found[SUBSCRIBED] if r.received]
    shares = {
        state: ", ".join(f"{kind} {us:.1f}" for kind, us in _cpu_us(found[state]).items()) for state in STATES
    }
    last = median(r.caught_up_s for r in found[SUBSCRIBED])
    relay_us = _cpu_us(found[SUBSCRIBED]).get("relay", 0.0)
    sums = {state: sum(_cpu_us(found[state]).values()) for state in STATES}
    per_event = sum(r.vouchers for r in heard) / max(1, sum(r.events for r in heard))
    return [
        Figure(NAME, ratio(SUBSCRIBED, UNHEARD), "", detail, at_least=TARGET),
        Figure(
            "CPU of the service per voucher, with a subscription : without",
            sums[SUBSCRIBED] / sums[UNHEARD],
            "",
            f"{sums[SUBSCRIBED]:.0f} : {sums[UNHEARD]:.0f} µs; with the relay paused {sums[PAUSED]:.0f} µs;"
            f" {per_event:.0f} vouchers per event",
        ),
        Figure(
            "confirmed with a subscription : with the relay paused", ratio(SUBSCRIBED, PAUSED), "", "as above"
        ),
        Figure(
            "CPU of the relay per voucher delivered",
            relay_us,
            "µs",
            "; ".join(f"{state}: {shares[state]}" for state in STATES),
        ),
        Figure(
            "lag at full rush, commit to receipt: p50",
            median(r.p50_ms for r in heard),
            "ms",
            f"last event {last:.2f} s after the last answer",
        ),
        Figure("lag at full rush, commit to receipt: p99", median(r.p99_ms for r in heard), "ms", "as above"),
    ]


def _cpu_us(rounds: list[EffectRound]) -> dict[str, float]:
    kinds = rounds[0].cpu_us
    return {kind: median(r.cpu_us.get(kind, 0.0) for r in rounds) for kind in kinds}


def _describe(rounds: list[EffectRound]) -> str:
    rates = [r.per_s for r in rounds]
    text = f"{median(rates):,.0f}/s"
    if len(rates) > 1:
        text += f" ({min(rates):,.0f}-{max(rates):,.0f})"
    text += f", {sum(_cpu_us(rounds).values()):.0f} µs CPU per voucher"
    received = rounds[0].received
    return text if received is None or len(rounds) > 1 else f"{text}, lag {received.lag}"


async def _round(
    subject: SubscribedService, state: str, seed: str, *, count: int, window_s: float
) -> EffectRound:
    service = subject.service
    with request_file(service, [DROP_ID], count, seed) as path:
        async with AsyncExitStack() as stack:
            if state == SUBSCRIBED:
                await stack.enter_async_context(subject.subscription())
            before = await service.issued([DROP_ID])
            cpu_s = cpu_seconds(service.root_pid)
            if state == PAUSED:
                with subject.relay_paused():
                    result = await run_wrk(service.url, path, connections=CONNECTIONS, window_s=window_s)
                    ended_s = time()
                    await service.settled()
            else:
                result = await run_wrk(service.url, path, connections=CONNECTIONS, window_s=window_s)
                ended_s = time()
                await service.settled()
            await (subject.told() if state == SUBSCRIBED else subject.numbered())
            used_s = spent(cpu_s, cpu_seconds(service.root_pid))
            received = await subject.well.report() if state == SUBSCRIBED else None
            issued = await service.issued([DROP_ID]) - before
    if result.refused or issued != result.answered:
        raise WrongAnswers(f"{result.answered} answers, {result.refused} refused, {issued} vouchers issued")
    if received is not None and received.vouchers != issued:
        raise WrongDeliveries(f"{issued} vouchers were issued, {received.vouchers} received: {received}")
    cpu_us = {kind: seconds * 1e6 / issued for kind, seconds in used_s.items()}
    caught_up_s = max(0.0, received.last_s - ended_s) if received else 0.0
    return EffectRound(result.requests_per_s, cpu_us, received, caught_up_s)
