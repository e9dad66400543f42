"""The line of a limited partner: in order, in small pulses, and open again when there is room for all."""

import asyncio
from time import perf_counter

from couponsvc.api.grab_answers import Reply
from couponsvc.api.rate_line import HOLD_S, PROBES_PER_TICK, TICK_MAX_COUNT, RateLine
from couponsvc.values.rate import Rate


class Grab:
    """Notes when it goes on, and uses the rate as a proven one does."""

    def __init__(self, line: RateLine, went: list[int], name: int) -> None:
        self.began_s = perf_counter()
        self.replies: list[Reply] = []
        self._line = line
        self._went = went
        self._name = name

    def go_on(self) -> None:
        assert not self._line.closed(), "it waited, and is not sent back into the line"
        self._line.pace.use()
        self._went.append(self._name)

    def reply(self, reply: Reply) -> None:
        self.replies.append(reply)


def used_up(rate: Rate) -> RateLine:
    line = RateLine(1, rate)
    for _ in range(rate.burst_count):
        line.pace.use()
    return line


def stand_in(line: RateLine, count: int) -> tuple[list[Grab], list[int]]:
    went: list[int] = []
    grabs = [Grab(line, went, name) for name in range(count)]
    for grab in grabs:
        line.take(grab)
    return grabs, went


async def first_tick(went: list[int]) -> list[int]:
    async with asyncio.timeout(5):
        while not went:
            await asyncio.sleep(0)
    return list(went)


async def test_who_came_first_goes_on_first() -> None:
    line = used_up(Rate(per_second=500, burst_count=100))
    assert line.closed()
    grabs, went = stand_in(line, 300)
    async with asyncio.timeout(5):
        while len(went) + sum(len(grab.replies) for grab in grabs) < len(grabs):
            await asyncio.sleep(0.01)
    assert went == list(range(len(went)))
    assert len(went) >= len(grabs) / 2, "the last of them were refused at once, the others waited"


async def test_what_comes_free_at_once_passes_in_parts_that_leave_the_loop_to_others() -> None:
    line = used_up(Rate(per_second=1_000, burst_count=1_000))
    _, went = stand_in(line, 500)
    line.pace.told(0, perf_counter())  # the gate forgot what was used
    assert len(await first_tick(went)) == TICK_MAX_COUNT + PROBES_PER_TICK
    assert not line.closed(), "there is room for all who wait and for more"


async def test_what_is_free_belongs_to_who_waits() -> None:
    line = used_up(Rate(per_second=1, burst_count=1_000))
    stand_in(line, 500)
    line.pace.told(500_000_000, perf_counter())
    assert line.closed(), "500 wait, 500 are free"
    line.pace.told(480_000_000, perf_counter())
    assert not line.closed(), "500 wait, 520 are free"


async def test_a_pulse_is_what_came_free_meanwhile_whatever_the_rate() -> None:
    for rate in (Rate(per_second=10_000, burst_count=5_000), Rate(per_second=20, burst_count=100)):
        began_s = perf_counter()
        line = used_up(rate)
        _, went = stand_in(line, 1_000)
        first = len(await first_tick(went))
        free = rate.per_second * (perf_counter() - began_s) + 1
        assert first <= min(free, TICK_MAX_COUNT) + PROBES_PER_TICK


async def test_who_waited_for_as_long_as_it_would_be_told_to_is_refused() -> None:
    line = used_up(Rate(per_second=1, burst_count=1))
    grabs, _ = stand_in(line, 300)
    for grab in grabs:
        grab.began_s -= HOLD_S
    async with asyncio.timeout(5):
        while not grabs[-1].replies:
            await asyncio.sleep(0.01)
    refused = [grab for grab in grabs if grab.replies]
    assert len(refused) == len(grabs) - PROBES_PER_TICK
    assert {grab.replies[0][0] for grab in refused} == {429}
