"""What the bench measures: a contender, the engines it may use, and what holds when it answers.

The harness gives every contender the same Redis and the same Postgres (a fresh, empty one each),
the same generator and the same rounds. A contender says how it is started, which requests it is
sent, and checks afterwards whether what it promised is so.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, NamedTuple


class Level(StrEnum):
    """What holds at the moment the answer is sent."""

    NOTHING = "-"
    """Nothing was decided or stored."""
    DECREMENT = "A"
    """The stock was counted down in Redis."""
    GUARDED = "B"
    """A, and nobody gets a second one."""
    QUEUED = "C"
    """B, and the grant is queued in Redis for whoever writes it to the database."""
    COMMITTED = "D"
    """The voucher and its outbox row are committed in Postgres."""


@dataclass(frozen=True)
class Engines:
    """The Redis and the Postgres that a contender may use; both are empty when it starts.

    Attributes:
        redis_url: `redis://…` of a server with `appendfsync always`.
        redis_pid: Its process.
        postgres_dsn: A fresh database on a server with `fsync` and `synchronous_commit` on.
        postgres_pid: The postmaster; its backends are its descendants.
    """

    redis_url: str
    redis_pid: int
    postgres_dsn: str
    postgres_pid: int


class Running(NamedTuple):
    """A contender that answers requests.

    Attributes:
        url: Where `wrk` sends its requests, scheme and authority only.
        pids: Kind of process (`api`, `drain`, …) → root processes; CPU counts their descendants.
    """

    url: str
    pids: Mapping[str, Sequence[int]]


class Contender(ABC):
    """One way to hand out vouchers (or, as a yardstick, to answer without handing out any)."""

    name: ClassVar[str]
    """A slug, e.g. `usual-service`; also what `--only` takes."""
    title: ClassVar[str]
    """What the table prints."""
    level: ClassVar[Level]
    """What holds when the answer is sent."""
    signed: ClassVar[bool] = False
    """Does it verify a signature on every request?"""
    uses_redis: ClassVar[bool]
    uses_postgres: ClassVar[bool]

    @abstractmethod
    def missing(self) -> str | None:
        """Why it cannot run on this machine and what to install; `None` if it can."""

    @abstractmethod
    def running(self, engines: Engines, directory: Path) -> AbstractAsyncContextManager[Running]:
        """Start it on empty engines; it is gone when the block is left, however it is left.

        Args:
            engines: Its Redis and Postgres; schema and stock are the contender's to make.
            directory: An empty directory of its own; nothing needs to be removed from it.
        """

    @abstractmethod
    def requests(self, round_no: int, count: int) -> Iterable[bytes]:
        """Whole raw HTTP/1.1 requests, each from a person that no other request of the run names.

        Args:
            round_no: Which round they are for, from 0; persons differ between rounds.
            count: How many.
        """

    @abstractmethod
    async def invariants(self, engines: Engines, answered_2xx: int) -> list[str]:
        """What is violated after the run, one sentence each; empty is good.

        Args:
            engines: Those given to `running`, still there.
            answered_2xx: How many requests were answered 2xx in all rounds and the warm-up.
        """
