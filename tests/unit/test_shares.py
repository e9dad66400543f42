"""Shares of a process: alone everything, together a window each, and nothing is kept back for ever."""

import asyncio
from collections import Counter

import pytest

from couponsvc.api import shares as module
from couponsvc.api.shares import SWEEP_S, WINDOWS_COUNT, Share, Shares


class Grab:
    """Counts who entered."""

    def __init__(self, entered: "Counter[str]", name: str) -> None:
        self._entered = entered
        self._name = name

    def enter(self) -> None:
        self._entered[self._name] += 1


def admit(share: Share, count: int, entered: "Counter[str]", name: str) -> None:
    for _ in range(count):
        share.admit(Grab(entered, name))


async def test_who_is_alone_waits_for_nobody() -> None:
    entered: Counter[str] = Counter()
    admit(Shares()[1], 5_000, entered, "flooder")
    assert entered["flooder"] == 5_000


async def test_together_each_has_a_window_and_the_rest_follows_as_answers_go_out() -> None:
    shares, entered = Shares(), Counter[str]()
    flooder, modest = shares[1], shares[2]
    admit(modest, 1, entered, "modest")
    admit(flooder, 500, entered, "flooder")
    admit(modest, 1, entered, "modest")
    assert entered == {"flooder": WINDOWS_COUNT // 2, "modest": 2}
    for _ in range(10):
        flooder.leave()
    assert entered["flooder"] == WINDOWS_COUNT // 2, "never within an answer"
    await asyncio.sleep(0)
    assert entered["flooder"] == WINDOWS_COUNT // 2 + 10


async def test_what_was_in_work_before_the_other_came_counts() -> None:
    shares, entered = Shares(), Counter[str]()
    flooder = shares[1]
    admit(flooder, 300, entered, "flooder")
    admit(shares[2], 1, entered, "modest")
    admit(flooder, 300, entered, "flooder")
    assert entered == {"flooder": 300, "modest": 1}
    for _ in range(300):
        flooder.leave()
    await asyncio.sleep(0)
    assert entered["flooder"] == 300 + WINDOWS_COUNT // 2


async def test_a_window_in_which_nothing_is_answered_grows_until_all_have_entered() -> None:
    shares, entered = Shares(), Counter[str]()
    admit(shares[2], 1, entered, "modest")
    admit(shares[1], 3_000, entered, "flooder")
    async with asyncio.timeout(5):
        while entered["flooder"] < 3_000:
            await asyncio.sleep(SWEEP_S)


async def test_who_sends_nothing_any_more_has_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SWEEPS_PER_LOOK", 1)
    shares, entered = Shares(), Counter[str]()
    modest, flooder = shares[2], shares[1]
    admit(modest, 1, entered, "modest")
    modest.leave()
    async with asyncio.timeout(5):
        while True:
            admit(flooder, WINDOWS_COUNT, entered, "flooder")
            for _ in range(flooder.in_work_count):
                flooder.leave()
            await asyncio.sleep(SWEEP_S / 4)
            if flooder.window_count > WINDOWS_COUNT:
                break
