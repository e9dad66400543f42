"""One worker's part of a run: its share of the crowd, its clock, its lanes and its records."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import gevent  # type: ignore[import-untyped] # gevent ships no types
import msgspec

from couponsvc.client import Unreachable
from loadtests.access import Access
from loadtests.clock import ASSUMED, Exchange, RunClock, measure
from loadtests.driver.agenda import Agenda, breathe
from loadtests.driver.requests import SignedRequest, Signer
from loadtests.driver.slow import Line
from loadtests.driver.writing import Reply, Writing
from loadtests.persons.crowd import Crowd
from loadtests.persons.kinds import SlowPartner
from loadtests.persons.person import Place, Presser, Step
from loadtests.persons.traits import Stall, Trickle
from loadtests.plan import Plan
from loadtests.records import Clock, RecordWriter
from loadtests.scenario import Scenario
from loadtests.signed import SignedCalls

Send = Callable[[SignedRequest, str, float | None], Reply]
LATE_AFTER_S: Final = 0.1
"""A request sent this much after it was due: the generator, not the service, was busy."""

_log: Final = logging.getLogger("locust.loadtests")


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told to do. Goes through locust's messages: holds no secret."""

    run: str
    plan: Plan
    scenario: Scenario
    seed: int
    place: int
    workers_count: int
    host: str

    @property
    def worker(self) -> str:
        """This worker's name in records."""
        return f"w{self.place}"


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of itself when everybody has gone home."""

    worker: str
    clock: Clock
    records_count: int
    bytes_count: int
    late_count: int
    """Requests sent more than LATE_AFTER_S after they were due."""
    late_max_s: float
    sent_home_count: int
    cpu_s: float
    """Of this process while the crowd pressed; locust's own upkeep is in it."""
    ready_s: float
    """When its crowd stood ready, in run seconds: should be before the first of them comes."""

    def tell(self) -> str:
        """One line about how the worker did: whether the generator kept up with its own schedule."""
        requests = max(self.records_count, 1)
        return (
            f"{self.records_count:,} requests, "
            f"{self.cpu_s:.1f} s of CPU ({self.cpu_s / requests * 1e6:.0f} µs each), "
            f"{self.late_count / requests:.0%} sent late (at most by {self.late_max_s:.2f} s), "
            f"{self.sent_home_count:,} persons sent home at the end, "
            f"crowd ready {-self.ready_s:.1f} s before the opening"
        )


class Crew:
    """Plays one worker's part; `play` returns when everybody has gone home.

    Args:
        orders: From the conductor.
        access: This machine's own credentials.
        records: Where the records go.
    """

    def __init__(self, orders: Orders, access: Access, records: Path) -> None:
        self._orders: Final = orders
        self._access: Final = access
        self._records_path: Final = records
        self._records: Final = RecordWriter(records)
        self.clock: Final = RunClock()
        self._offset: Clock = ASSUMED
        self._drop_ids: Final = [drop.drop_id for drop in orders.plan.drops]
        self._agenda: Final = Agenda(self.clock, orders.scenario.lasts_s)
        self._writing: Final = Writing(
            orders.worker, self.clock, orders.plan.opens_ms, open_loop=orders.scenario.loop == "open"
        )
        self._line: Final = Line(orders.host, self.clock)
        self._signer = Signer(access.key, self.clock, 0.0)
        self._late_count = 0
        self._late_max_s = 0.0

    def play(self) -> Account:
        """Measure the clock, gather the crowd, let it press, and close the books."""
        orders = self._orders
        self._offset = self._measure_clock()
        self.clock.aim(orders.plan.opens_ms, self._offset.offset_ms)
        self._signer = Signer(self._access.key, self.clock, self._offset.offset_ms)
        opens_ms = orders.plan.opens_ms
        places = [Place(drop.drop_id, (drop.opens_ms - opens_ms) / 1_000) for drop in orders.plan.drops]
        crowd = Crowd(orders.scenario, orders.plan.persons, orders.seed, orders.run, places)
        self._agenda.fill(crowd.part(orders.place, orders.workers_count, breathe))
        ready_s, cpu_before_s = self.clock.now_s(), time.process_time()
        _log.info(
            "%s: ready %.1f s before the opening; deployment's clock minus ours: %+.1f ms, give or take %.1f",
            orders.worker,
            -ready_s,
            self._offset.offset_ms,
            self._offset.tolerance_ms,
        )
        handing_out = gevent.spawn(self._agenda.run)
        try:
            self._agenda.wait_finished()
        finally:
            handing_out.kill()
            self._records.close()
        return Account(
            worker=orders.worker,
            clock=self._offset,
            records_count=self._records.count,
            bytes_count=self._records_path.stat().st_size,
            late_count=self._late_count,
            late_max_s=self._late_max_s,
            sent_home_count=self._agenda.sent_home_count,
            cpu_s=time.process_time() - cpu_before_s,
            ready_s=ready_s,
        )

    def serve(self, send: Send) -> None:
        """Send what is due over one lane until everybody has gone home."""
        while (due := self._agenda.take()) is not None:
            step, presser = due
            if isinstance(presser, SlowPartner):
                gevent.spawn(self._serve_slowly, step, presser)  # a lane has no time for that
                continue
            late_s = self.clock.now_s() - step.due_s
            if late_s > LATE_AFTER_S:
                self._late_count += 1
                self._late_max_s = max(self._late_max_s, late_s)
            drop_id, token = self._drop_ids[step.place], presser.who.token
            request = self._signer.request(step, drop_id, token)
            reply = send(request, step.what, step.timeout_s)
            record, told = self._writing.settle(step, drop_id, token, reply)
            self._records.write(record)
            self._agenda.add(presser.told(step, told), presser)

    def flush(self) -> None:
        """Hand what is written so far to the system, for whoever ships it."""
        if not self._agenda.wait_finished(0):
            self._records.flush()

    def _serve_slowly(self, step: Step, presser: Presser) -> None:
        drop_id, token = self._drop_ids[step.place], presser.who.token
        match presser.traits:
            case Trickle() as traits:
                request = self._signer.grab(drop_id, token, step.number)
                reply = self._line.trickle(request, traits, finishes=presser.chance() < traits.finishes_share)
                self._records.write(self._writing.settle(step, drop_id, token, reply, "trickle")[0])
            case Stall() as traits:
                steps = [
                    step._replace(number=f"{step.number}-{turn}") for turn in range(traits.requests_count)
                ]
                replies = self._line.stall(self._requests(steps, drop_id, token), traits)
                for one, reply in zip(steps, replies, strict=False):
                    record, _ = self._writing.settle(one, drop_id, f"{token}-{one.number}", reply, "stall")
                    self._records.write(record)
        self._agenda.add(None, presser)

    def _requests(self, steps: list[Step], drop_id: str, token: str) -> Iterator[SignedRequest]:
        for step in steps:
            yield self._signer.grab(drop_id, f"{token}-{step.number}", step.number)

    def _measure_clock(self) -> Clock:
        orders = self._orders
        exchanges: list[Exchange] = []
        if orders.plan.clock_drop_id:
            who = f"{orders.run}-{orders.worker}"
            try:
                with SignedCalls(orders.host, self._access.key) as calls:
                    exchanges = calls.exchanges(orders.plan.clock_drop_id, who, self.clock)
                    if calls.refused:
                        _log.warning("%s: the clock drop answered %s", orders.worker, calls.refused)
            except Unreachable as error:
                _log.warning("%s: the clock cannot be read: %s", orders.worker, error)
        if not exchanges:
            _log.warning(
                "%s: the deployment's clock is not known; taken to be ours, give or take %.0f ms",
                orders.worker,
                ASSUMED.tolerance_ms,
            )
        return measure(exchanges)
