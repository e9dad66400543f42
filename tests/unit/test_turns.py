"""Turns: some at once, then a rest that is longer than the turn was, and none any more once stopped."""

import asyncio
from time import perf_counter

import pytest

from couponsvc.api import turns as module
from couponsvc.api.turns import Rhythm, Turns

PATIENCE_S = 5.0
TOOK_S = 0.02
CLOCK_S = 0.002
"""The loop's timers are as fine as its clock, a millisecond, and may fire that much early."""


class Taker:
    """Notes when its turns began."""

    def __init__(self, *, works: bool = True) -> None:
        self.began_s: list[float] = []
        self._works = works

    def take_turn(self) -> bool:
        self.began_s.append(perf_counter())
        return self._works


async def next_turn(taker: Taker, count: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while len(taker.began_s) < count:
            await asyncio.sleep(0.001)


async def test_a_turn_follows_when_the_rest_is_over_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REST_MAX_S", PATIENCE_S)
    taker = Taker()
    turns = Turns(taker, Rhythm(turn_count=1, rest_ratio=2.0))
    turns.begin()
    await asyncio.sleep(TOOK_S)
    ended_s = perf_counter()
    turns.end()
    turns.begin()
    assert len(taker.began_s) == 1, "it rests"
    await next_turn(taker, 2)
    assert taker.began_s[1] - ended_s >= 2.0 * TOOK_S - CLOCK_S


async def test_a_turn_in_work_is_not_joined_by_another() -> None:
    taker = Taker()
    turns = Turns(taker, Rhythm(turn_count=1, rest_ratio=1.0))
    for _ in range(3):
        turns.begin()
    assert len(taker.began_s) == 1


async def test_a_turn_in_which_nobody_was_there_needs_no_rest() -> None:
    taker = Taker(works=False)
    turns = Turns(taker, Rhythm(turn_count=1, rest_ratio=1.0))
    turns.begin()
    turns.begin()
    assert len(taker.began_s) == 2


async def test_the_rest_after_a_slow_turn_is_short() -> None:
    taker = Taker()
    turns = Turns(taker, Rhythm(turn_count=1, rest_ratio=1_000.0))
    turns.begin()
    await asyncio.sleep(TOOK_S)
    turns.end()
    await next_turn(taker, 2)  # a thousand times would be twenty seconds


async def test_stopped_it_takes_no_turn_after_its_rest_either() -> None:
    taker = Taker()
    turns = Turns(taker, Rhythm(turn_count=1, rest_ratio=1.0))
    turns.begin()
    turns.end()
    turns.stop()
    await asyncio.sleep(3 * module.REST_MAX_S)
    turns.begin()
    assert len(taker.began_s) == 1
