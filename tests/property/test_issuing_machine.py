"""Any order of grabs, drainer's steps, losses, rebuilds and operators' changes keeps the four promises.

The default run takes the same examples every time. More, and new ones each time:
`MACHINE_EXAMPLES=2000 pytest tests/property/test_issuing_machine.py`.
"""

import asyncio
import os
from collections.abc import Awaitable, Iterator
from typing import ClassVar, Final, TypeVar

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from couponsvc import limits
from couponsvc.reconcile import attending
from couponsvc.support.postgres import open_pool
from couponsvc.support.redis_client import open_redis
from couponsvc.values.drop import DropStatus
from tests.property.issuing_world import World

pytestmark = [pytest.mark.faults, pytest.mark.timeout(0)]  # to shrink a failure may take minutes

EXAMPLES_COUNT: Final = 40
"""A second each; MACHINE_EXAMPLES=1000 plays others, and more."""
STEPS_COUNT: Final = 40
PERSONS: Final = st.sampled_from("abcdef")
NUMBERS: Final = st.integers(0, 19).map("n{}".format)
GRABS: Final = st.lists(st.tuples(PERSONS, NUMBERS), min_size=1, max_size=6)
DRAINERS: Final = st.integers(0, 1)
DRAINER_STEPS: Final = st.sampled_from(
    ["read", "commit", "acknowledge", "read", "commit", "acknowledge", "crash"]
)
BOOLEANS: Final = st.booleans()

STATUSES: Final = st.sampled_from([DropStatus.ACTIVE] * 4 + [DropStatus.PAUSED])
SURE: Final = 13

_T = TypeVar("_T")
Engines = tuple["asyncpg.Pool[asyncpg.Record]", Redis, str]


class Machine(RuleBasedStateMachine):
    """Who may do what, and when."""

    loop: ClassVar[asyncio.AbstractEventLoop]
    engines: ClassVar[Engines]

    def __init__(self) -> None:
        super().__init__()
        self.world = World(*self.engines)

    def run(self, work: Awaitable[_T]) -> _T:
        async def whole() -> _T:
            return await work

        return self.loop.run_until_complete(whole())

    @initialize(quantity=st.integers(1, 5), limit=st.integers(1, 2))
    def begin(self, quantity: int, limit: int) -> None:
        self.run(self.world.open(quantity, limit))

    @rule(person=PERSONS, number=NUMBERS, stale=BOOLEANS)
    def grab(self, person: str, number: str, stale: bool) -> None:  # noqa: FBT001 - drawn
        self.run(self.world.grab(person, number, stale=stale))

    @rule(grabs=GRABS)
    def rush(self, grabs: list[tuple[str, str]]) -> None:
        for person, number in grabs:
            self.run(self.world.grab(person, number, stale=False))

    @precondition(lambda self: self.world.told)
    @rule(person=PERSONS, which=st.integers(0, 9), drainer=DRAINERS)
    def grab_with_the_number_of_another(self, person: str, which: int, drainer: int) -> None:
        numbers = sorted(self.world.told)
        self.run(self.world.reconcile())
        self.run(self.world.grab(person, numbers[which % len(numbers)], stale=False))
        self.run(self.world.read(drainer))
        self.run(self.world.commit(drainer))

    @rule(grabs=GRABS, after=GRABS, drainer=DRAINERS)
    def fail_over_to_a_stale_replica(
        self, grabs: list[tuple[str, str]], after: list[tuple[str, str]], drainer: int
    ) -> None:
        """What is granted meanwhile is lost, but for what a drainer has in its hands."""
        self.run(self.world.reconcile())
        self.run(self.world.drain())
        self.run(self.world.keep_copy())
        self.rush(grabs)
        self.run(self.world.read(drainer))
        self.run(self.world.lose(copied=True, noticed=True))
        self.run(self.world.reconcile())
        self.rush(after)
        self.run(self.world.commit(drainer))
        self.rush(grabs)
        self.run(self.world.drain())

    @rule(steps=st.lists(st.tuples(DRAINER_STEPS, DRAINERS), min_size=1, max_size=8))
    def drainers_race(self, steps: list[tuple[str, int]]) -> None:
        for step, drainer in steps:
            match step:
                case "read":
                    self.run(self.world.read(drainer))
                case "commit":
                    self.run(self.world.commit(drainer))
                case "acknowledge":
                    self.run(self.world.acknowledge(drainer))
                case _:
                    self.run(self.world.crash(drainer))
            self.promises_hold()

    @rule()
    def drain(self) -> None:
        self.run(self.world.drain())

    @rule(noticed=BOOLEANS, left=BOOLEANS)
    def wipe(self, noticed: bool, left: bool) -> None:  # noqa: FBT001 - drawn
        self.run(self.world.lose(copied=False, noticed=noticed))
        if not left:
            self.run(self.world.reconcile())

    @rule()
    def keep_copy(self) -> None:
        self.run(self.world.keep_copy())

    @precondition(lambda self: self.world.copy is not None)
    @rule(left=BOOLEANS)
    def restore_copy(self, left: bool) -> None:  # noqa: FBT001 - drawn
        self.run(self.world.lose(copied=True, noticed=True))
        if not left:
            self.run(self.world.reconcile())

    @rule(rounds=st.integers(1, 3))
    def reconcile(self, rounds: int) -> None:
        for _ in range(rounds):
            self.run(self.world.reconcile())

    @rule()
    def rebuild(self) -> None:
        self.run(self.world.rebuild())

    @rule()
    def pause_before_raising(self) -> None:
        self.run(self.world.pause_before_raising())

    @rule()
    def pause_after_raising(self) -> None:
        self.run(self.world.pause_after_raising())

    @precondition(lambda self: self.world.paused)
    @rule()
    def resume_oldest(self) -> None:
        self.run(self.world.resume_oldest())

    @rule(add=st.integers(1, 2))
    def restock(self, add: int) -> None:
        self.run(self.world.restock(add))

    @rule()
    def restock_untold(self) -> None:
        self.run(self.world.change_untold())

    @rule(by=st.integers(1, 2))
    def lower(self, by: int) -> None:
        self.run(self.world.lower(by))

    @rule()
    def lower_and_fail(self) -> None:
        self.run(self.world.lower_and_fail())

    @rule()
    def tell_again(self) -> None:
        self.run(self.world.tell_again())

    @rule(status=STATUSES)
    def pause_or_resume(self, status: DropStatus) -> None:
        self.run(self.world.set_status(status))

    @rule(sure=st.integers(0, 19))
    def close(self, sure: int) -> None:
        if sure == SURE:  # it ends all grabs, so not often
            self.run(self.world.set_status(DropStatus.CLOSED))

    @invariant()
    def promises_hold(self) -> None:
        if self.world.drop_no:
            self.run(self.world.check())

    def teardown(self) -> None:
        try:
            if self.world.drop_no:
                self.run(self.world.come_to_rest())
        finally:
            self.run(self.world.close())


@pytest.fixture
def machine(redis_url: str, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Machine]]:
    # Nobody drains, and no operator is at work, while a reconciler waits in this one thread.
    monkeypatch.setattr(limits, "DRAIN_PATIENCE_MS", 0)
    monkeypatch.setattr(attending, "AHEAD_FOR_S", 0.0)
    monkeypatch.setattr(attending, "REBUILD_PAUSES_S", (0,))
    loop = asyncio.new_event_loop()
    pool, redis = loop.run_until_complete(open_pool(database)), open_redis(redis_url)

    class Bound(Machine):
        engines = (pool, redis, redis_url)

    Bound.loop = loop
    yield Bound
    loop.run_until_complete(redis.aclose())
    pool.terminate()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_the_promises_hold_in_whatever_order_things_happen(machine: type[Machine]) -> None:
    asked = os.environ.get("MACHINE_EXAMPLES", "")
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(asked or EXAMPLES_COUNT),
            stateful_step_count=STEPS_COUNT,
            derandomize=not asked,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
