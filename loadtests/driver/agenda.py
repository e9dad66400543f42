"""The schedule of one worker: who sends what next, handed out to whichever lane is free.

50,000 persons need no 50,000 greenlets. A person is an entry in a heap until its next request is
due; a few dozen lanes (locust's users) send what is due, in the order in which it became due.
"""

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Final

import gevent  # type: ignore[import-untyped] # gevent ships no types
from gevent.event import Event  # type: ignore[import-untyped] # as above
from gevent.queue import SimpleQueue  # type: ignore[import-untyped] # as above

from loadtests.clock import RunClock
from loadtests.persons.person import Presser, Step

Due = tuple[Step, Presser]


class Agenda:
    """Steps by due time. Every person that was added is either due, being served, or gone home.

    Args:
        clock: Aimed at the opening of the run.
        ends_s: What is due later is not sent any more.
    """

    def __init__(self, clock: RunClock, ends_s: float) -> None:
        self._clock: Final = clock
        self._ends_s: Final = ends_s
        self._heap: list[tuple[float, int, Step, Presser]] = []
        self._ready: Final = SimpleQueue()
        self._sooner: Final = Event()
        self._finished: Final = Event()
        self._serial = 0
        self._here_count = 0
        self.sent_home_count = 0
        """Persons that still wanted something when the run ended."""

    def fill(self, pressers: Iterable[Presser]) -> None:
        """Let everybody in; once, before `run`."""
        self._heap = [
            (step.due_s, serial, step, presser)
            for serial, presser in enumerate(pressers)
            for step in (presser.first(),)
        ]
        self._serial = self._here_count = len(self._heap)
        heapify(self._heap)
        if not self._here_count:
            self._finished.set()

    def run(self) -> None:
        """Hand out what becomes due, until everybody has gone home."""
        heap, clock = self._heap, self._clock
        while not self._finished.is_set():
            now_s = clock.now_s()
            while heap and heap[0][0] <= now_s:
                _, _, step, presser = heappop(heap)
                self._ready.put((step, presser))
            if now_s >= self._ends_s:
                self._close_doors()
            self._sooner.clear()
            next_s = min(heap[0][0] if heap else self._ends_s, self._ends_s)
            self._sooner.wait(max(next_s - clock.now_s(), 0.0) if now_s < self._ends_s else None)

    def take(self) -> Due | None:
        """The next step that is due; waits for one. None once everybody has gone home."""
        due: Due | None = self._ready.get()
        if due is None:
            self._ready.put(None)  # for the next lane
        return due

    def add(self, step: Step | None, presser: Presser) -> None:
        """What a person that was served wants next; None: it goes home."""
        if step is not None and self._clock.now_s() < self._ends_s:
            self._serial += 1
            heappush(self._heap, (step.due_s, self._serial, step, presser))
            if self._heap[0][2] is step:
                self._sooner.set()
            return
        self.sent_home_count += step is not None
        self._go_home(1)

    def wait_finished(self, timeout_s: float | None = None) -> bool:
        """Wait until everybody has gone home; whether they have."""
        return bool(self._finished.wait(timeout_s))

    def _close_doors(self) -> None:
        waiting_count = len(self._heap)
        self._heap.clear()
        while not self._ready.empty() and self._here_count > waiting_count:
            if self._ready.get() is not None:
                waiting_count += 1
        self.sent_home_count += waiting_count
        self._go_home(waiting_count)

    def _go_home(self, count: int) -> None:
        self._here_count -= count
        if self._here_count == 0:
            self._ready.put(None)
            self._finished.set()
            self._sooner.set()


def breathe() -> None:
    """Let other greenlets run: in the middle of long work, so that locust's heartbeats go on."""
    gevent.sleep(0)
