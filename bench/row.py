"""A row of the table as the harness drives it: something that answers, and how to judge what it said."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import ClassVar, Final

from bench.contender import Contender, Engines, Level, Running


class Row(ABC):
    """One row. Rounds of different rows are interleaved; a row is alive from first to last.

    Attributes:
        url: Where requests go.
        roots: Kind of process → root processes, engines included (`bench.cpu`).
        accepted: Requests answered with a status below 400 so far, in every loop.
    """

    name: str
    title: str
    level: Level
    signed: bool
    refuses: ClassVar[bool] = False
    """Is a refusal (409) the right answer to every request?"""

    def __init__(self, url: str, roots: Mapping[str, Sequence[int]]) -> None:
        self.url: Final = url
        self.roots: Final = roots
        self.accepted = 0
        self._lots: Final = count()

    def take_requests(self, wanted_count: int) -> Iterable[bytes]:
        """Whole raw requests that were never taken before."""
        return self._requests(next(self._lots), wanted_count)

    @abstractmethod
    def _requests(self, lot_no: int, wanted_count: int) -> Iterable[bytes]:
        """Requests of persons that no other lot names."""

    async def prepare(self) -> None:  # noqa: B027 - most rows need none
        """Bring about what the requests meet; once, before the first of them."""

    async def before_loop(self) -> None:  # noqa: B027 - most rows need none
        """Take note of how things stand; right before requests are sent."""

    async def settle(self) -> None:  # noqa: B027 - most rows need none
        """Wait until what was begun by answered requests is finished; its CPU counts."""

    @abstractmethod
    async def judge_loop(self, answered: int, refused: int) -> list[str]:
        """What is wrong with the answers of a loop, one sentence each.

        Args:
            answered: All answers.
            refused: Those with a status of 400 or above.
        """

    @abstractmethod
    async def invariants(self) -> list[str]:
        """What is violated after all loops, one sentence each."""


class AlternativeRow(Row):
    """A contender that is not ours, on engines of the harness."""

    def __init__(self, contender: Contender, running: Running, engines: Engines) -> None:
        roots = {kind: tuple(pids) for kind, pids in running.pids.items()}
        if contender.uses_redis:
            roots["redis"] = (engines.redis_pid,)
        if contender.uses_postgres:
            roots["postgres"] = (engines.postgres_pid,)
        super().__init__(running.url, roots)
        self.name, self.title = contender.name, contender.title
        self.level, self.signed = contender.level, contender.signed
        self._contender: Final = contender
        self._engines: Final = engines

    def _requests(self, lot_no: int, wanted_count: int) -> Iterable[bytes]:
        return self._contender.requests(lot_no, wanted_count)

    async def judge_loop(self, answered: int, refused: int) -> list[str]:
        """Every request is new and stock never ends, so that a refusal is wrong."""
        self.accepted += answered - refused
        return [f"{refused} of {answered} answers have a status of 400 or above"] if refused else []

    async def invariants(self) -> list[str]:
        """See `Contender.invariants`."""
        return await self._contender.invariants(self._engines, self.accepted)
