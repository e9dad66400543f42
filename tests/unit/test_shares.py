"""Shares of a process: alone everything, together a window each; who presses gives way, and not for ever."""

import asyncio
from collections import Counter
from time import perf_counter

import pytest

from couponsvc.api import shares as module
from couponsvc.api.shares import SWEEP_S, SWEEPS_PER_LOOK, WINDOWS_COUNT, Share, Shares
from couponsvc.api.turns import REST_MAX_S, RHYTHMS

PATIENCE_S = 5.0
HOLD_MS = 500
LONG_HOLD_MS = 5_000
"""Beside which the line of a test that answers every 50 ms is short."""
TURN_COUNT = RHYTHMS[0].turn_count


class Grab:
    """Counts who entered."""

    def __init__(self, entered: "Counter[str]", name: str, began_s: float | None = None) -> None:
        self._entered = entered
        self._name = name
        self.began_s = perf_counter() if began_s is None else began_s

    def enter(self) -> None:
        self._entered[self._name] += 1


def answer(share: Share, count: int) -> None:
    for _ in range(count):
        share.leave()


async def until_entered(entered: "Counter[str]", name: str, count: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while entered[name] < count:
            await asyncio.sleep(0.001)


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


async def test_who_presses_gives_way_to_a_modest_one_turn_by_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SWEEP_S", PATIENCE_S)  # what is not answered for long is another test
    shares, entered = Shares(), Counter[str]()
    flooder, modest = shares[1], shares[2]
    admit(flooder, WINDOWS_COUNT, entered, "flooder")
    admit(modest, 1, entered, "modest")
    admit(flooder, 3 * TURN_COUNT, entered, "flooder")
    answer(flooder, WINDOWS_COUNT)
    for turn in range(1, 4):
        await until_entered(entered, "flooder", WINDOWS_COUNT + turn * TURN_COUNT)
        await asyncio.sleep(2 * REST_MAX_S)
        assert entered["flooder"] == WINDOWS_COUNT + turn * TURN_COUNT, "a turn is answered first"
        answer(flooder, TURN_COUNT)
        admit(modest, 1, entered, "modest")
    assert entered["modest"] == 4, "a modest one waits for nobody"


async def test_where_all_press_nobody_gives_way() -> None:
    shares, entered = Shares(), Counter[str]()
    names = ("first", "second")
    for count in (WINDOWS_COUNT, 50 * WINDOWS_COUNT):
        for partner_no, name in enumerate(names):
            admit(shares[partner_no], count, entered, name)
    await asyncio.sleep(2 * SWEEP_S)
    for partner_no in range(len(names)):
        answer(shares[partner_no], shares[partner_no].in_work_count)
    before = Counter(entered)
    await asyncio.sleep(0)
    for name in names:
        assert entered[name] - before[name] >= WINDOWS_COUNT // 2 > TURN_COUNT


async def test_who_gives_way_has_its_window_again_when_the_modest_one_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SWEEPS_PER_LOOK", 2)
    shares, entered = Shares(), Counter[str]()
    flooder = shares[1]
    admit(flooder, WINDOWS_COUNT, entered, "flooder")
    admit(shares[2], 1, entered, "modest")
    admit(flooder, 10 * WINDOWS_COUNT, entered, "flooder")
    answer(flooder, WINDOWS_COUNT)
    await until_entered(entered, "flooder", 11 * WINDOWS_COUNT)


async def test_where_nobody_may_be_held_nobody_gives_way() -> None:
    shares, entered = Shares(hold_ms=0), Counter[str]()
    flooder = shares[1]
    admit(flooder, WINDOWS_COUNT, entered, "flooder")
    admit(shares[2], 1, entered, "modest")
    admit(flooder, WINDOWS_COUNT, entered, "flooder")
    answer(flooder, WINDOWS_COUNT)
    await asyncio.sleep(0)
    assert entered["flooder"] == WINDOWS_COUNT + WINDOWS_COUNT // 2


async def test_whose_line_waits_too_long_gives_way_to_nobody() -> None:
    shares, entered = Shares(HOLD_MS), Counter[str]()
    flooder, modest = shares[1], shares[2]
    admit(flooder, WINDOWS_COUNT, entered, "flooder")
    admit(modest, 1, entered, "modest")
    long_ago_s = perf_counter() - HOLD_MS / 1_000
    for _ in range(20 * WINDOWS_COUNT):
        flooder.admit(Grab(entered, "flooder", long_ago_s))
    largest_count = 0
    async with asyncio.timeout(PATIENCE_S):
        while flooder.waiting:
            largest_count = max(largest_count, flooder.in_work_count)
            answer(flooder, flooder.in_work_count)
            admit(modest, 1, entered, "modest")
            answer(modest, modest.in_work_count)
            await asyncio.sleep(SWEEP_S / 10)
    assert largest_count >= WINDOWS_COUNT // 2
    assert modest.active, "it was there all the time"


async def test_whose_line_is_short_again_gives_way_again() -> None:
    shares, entered = Shares(LONG_HOLD_MS), Counter[str]()
    flooder, modest = shares[1], shares[2]
    admit(flooder, WINDOWS_COUNT, entered, "flooder")
    admit(modest, 1, entered, "modest")
    long_ago_s = perf_counter() - LONG_HOLD_MS / 1_000
    for _ in range(WINDOWS_COUNT):
        flooder.admit(Grab(entered, "flooder", long_ago_s))
    most_counts: list[int] = []
    for _ in range((len(RHYTHMS) + 2) * SWEEPS_PER_LOOK):
        answer(flooder, flooder.in_work_count)
        admit(flooder, max(0, WINDOWS_COUNT - len(flooder.waiting)), entered, "flooder")
        admit(modest, 1, entered, "modest")
        answer(modest, modest.in_work_count)
        await asyncio.sleep(SWEEP_S)
        most_counts.append(flooder.in_work_count)
    assert max(most_counts) > TURN_COUNT
    assert most_counts[-1] <= TURN_COUNT


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
