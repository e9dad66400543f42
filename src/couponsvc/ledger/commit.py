"""Commits grants: one transaction per batch, gap-free numbers, one answer per grant.

**Fast path**: one SQL statement per batch. A voucher's code depends on its number, so the
drainer foresees the numbers: it knows how many each drop had issued after the last commit. The
statement locks the drops, checks that epoch and count are the foreseen ones, inserts, advances
the count and writes the events, or leaves a drop untouched and reports its true figures, with
which it is tried again.

**Slow path**: an explicit transaction for whatever the fast path cannot do: a duplicate, a
closed epoch, an exhausted quantity. It locks the drops, reads the rows that stand, rules on every
grant in order (`verdicts.classify`) and inserts the rest.

Both paths may be run again with the same grants at any time: what is committed is answered as
committed. A failure therefore never needs undoing, only repeating.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from time import perf_counter
from typing import Final

import asyncpg

from couponsvc.ledger import metrics
from couponsvc.ledger.codes import CodeBook
from couponsvc.ledger.grouping import SEPARATOR, Answers, Group, Settled, assemble, group_entries
from couponsvc.ledger.settling import settle
from couponsvc.support.sql import Queries
from couponsvc.values.outcome import Verdict
from couponsvc.values.wire import Confirmation, DropEpoch, Entry, MalformedEntry

FORESIGHT_ATTEMPTS_MAX_COUNT: Final = 3
"""Fast attempts per batch; each one that fails reports true figures, so two do unless drainers race."""
SETTLE_ATTEMPTS_MAX_COUNT: Final = 5
"""Slow attempts before the failure is the caller's: each lost a race for a number on another drop."""
SETTLE_PAUSE_MAX_S: Final = 0.05
FIGURES_MAX_COUNT: Final = 10_000
"""Drops whose figures a drainer remembers; a forgotten one costs one more query."""

_queries = Queries("couponsvc.ledger", "commit")
_RACE_LOST = (
    asyncpg.UniqueViolationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
)


@dataclass(slots=True)
class Figures:
    """What this process knows of a drop: true when read, foreseen until the next commit."""

    epoch: int
    issued: int
    book: CodeBook


class Committer:
    """Commits batches over one connection of its own. Not for concurrent use."""

    def __init__(
        self, pool: "asyncpg.Pool[asyncpg.Record]", unseal_code_key: Callable[[bytes], bytes]
    ) -> None:
        self._pool = pool
        self._unseal = unseal_code_key
        self._connection: asyncpg.pool.PoolConnectionProxy[asyncpg.Record] | None = None
        self._figures: dict[int, Figures] = {}
        self._books: dict[int, CodeBook] = {}

    async def commit(self, entries: Sequence[Entry]) -> list[Settled]:
        """Commit all grants of the entries and say what became of each.

        Returns:
            One element per entry, same order. Everything in it is committed: it may be told.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: nothing may be
                told. The batch may or may not be committed; run it again, with this object.
        """
        groups = group_entries(entries)
        answers: dict[DropEpoch, Answers] = {}
        started = perf_counter()
        try:
            if len({group.key.drop_no for group in groups}) == len(groups):
                answers = await self._commit_foreseen(groups)
            rest = [group for group in groups if group.key not in answers]
            metrics.commits.labels("slow" if rest else "fast").inc()
            if rest:
                answers |= await self._settle(rest)
        except BaseException:
            await self._give_up()
            raise
        metrics.commit_seconds.observe(perf_counter() - started)
        metrics.grants_per_commit.observe(sum(len(group.grants) for group in groups))
        return assemble(entries, groups, answers)

    async def close(self) -> None:
        """Give the connection back."""
        await self._give_up()

    async def _commit_foreseen(self, groups: Sequence[Group]) -> dict[DropEpoch, Answers]:
        """The fast path. Answers those groups that it could commit."""
        answers: dict[DropEpoch, Answers] = {}
        for _ in range(FORESIGHT_ATTEMPTS_MAX_COUNT):
            waiting = [group for group in groups if group.key not in answers]
            known = await self._foresee([group.key.drop_no for group in waiting])
            fitting = [g for g in waiting if (f := known.get(g.key.drop_no)) and f.epoch == g.key.epoch]
            if not fitting:
                break
            try:
                answered = await self._run_statement(fitting, known)
            except (*_RACE_LOST, asyncpg.CheckViolationError):
                break  # the whole statement was undone: duplicates, to be ruled on one by one
            answers |= answered
            if len(answers) == len(groups):
                break
        return answers

    async def _run_statement(
        self, groups: Sequence[Group], known: dict[int, Figures]
    ) -> dict[DropEpoch, Answers]:
        """One fast attempt. Corrects the figures of every drop from what the statement reports."""
        connection = await self._lease()
        codes: dict[int, list[str]] = {}
        drop_nos: list[str] = []
        seqs: list[str] = []
        for group in groups:
            drop_no, first, count = group.key.drop_no, known[group.key.drop_no].issued + 1, len(group.grants)
            codes[drop_no] = known[drop_no].book.codes(drop_no, first, count)
            drop_nos += [str(drop_no)] * count
            seqs += map(str, range(first, first + count))
        grants = groups[0].grants if len(groups) == 1 else [grant for g in groups for grant in g.grants]
        _, holders, numbers, ordinals, _, channels, regions = zip(*grants, strict=True)
        partners, _, tokens = zip(*[holder.partition(":") for holder in holders], strict=True)
        rows = await connection.fetch(
            _queries["commit_grants"],
            [group.key.drop_no for group in groups],
            [group.key.epoch for group in groups],
            [known[group.key.drop_no].issued for group in groups],
            [len(group.grants) for group in groups],
            _join(drop_nos), _join(seqs), _join(partners), _join([str(ordinal) for ordinal in ordinals]),
            _join(tokens), _join(numbers), _join([code for g in groups for code in codes[g.key.drop_no]]),
            _join(channels), _join(regions),
        )  # fmt: skip
        committed: dict[int, tuple[int, int]] = {}
        for drop_no, epoch, issued, vouchers, issued_ms in rows:
            known[drop_no].epoch, known[drop_no].issued = epoch, issued
            if vouchers:
                committed[drop_no] = (issued - vouchers + 1, issued_ms)
        return {
            group.key: Answers(_confirm(group, *committed[group.key.drop_no], codes[group.key.drop_no]))
            for group in groups
            if group.key.drop_no in committed
        }

    async def _settle(self, groups: Sequence[Group]) -> dict[DropEpoch, Answers]:
        """The slow path, repeated while another transaction took a number in between."""
        for attempt in range(SETTLE_ATTEMPTS_MAX_COUNT):
            known = await self._foresee([group.key.drop_no for group in groups])
            connection = await self._lease()
            try:
                async with connection.transaction():
                    answers = await settle(connection, groups, {no: f.book for no, f in known.items()})
            except _RACE_LOST:
                if attempt == SETTLE_ATTEMPTS_MAX_COUNT - 1:
                    raise
                metrics.races_lost.inc()
                await asyncio.sleep(SETTLE_PAUSE_MAX_S * random.random())  # noqa: S311 - spreads racers
            else:
                break
        for drop_no in known:
            self._figures.pop(drop_no, None)
        return answers

    async def _foresee(self, drop_nos: Sequence[int]) -> dict[int, Figures]:
        """Figures of the drops; those never seen are read. A drop that does not exist is left out."""
        unseen = [drop_no for drop_no in drop_nos if drop_no not in self._figures]
        if unseen:
            if len(self._figures) + len(unseen) > FIGURES_MAX_COUNT:
                self._figures.clear()
                unseen = list(drop_nos)
            connection = await self._lease()
            for drop_no, epoch, issued, program_no, sealed in await connection.fetch(
                _queries["load_figures"], unseen
            ):
                book = self._books.get(program_no)
                if book is None:
                    book = self._books[program_no] = CodeBook(self._unseal(sealed))
                self._figures[drop_no] = Figures(epoch, issued, book)
        return {drop_no: self._figures[drop_no] for drop_no in drop_nos if drop_no in self._figures}

    async def _lease(self) -> "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]":
        """The connection of this committer; a new one after a failure."""
        if self._connection is None:
            self._connection = await self._pool.acquire()
        return self._connection

    async def _give_up(self) -> None:
        """Forget the connection and every figure: after a failure neither can be trusted."""
        self._figures.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()
            await self._pool.release(connection)


def _join(column: Sequence[str]) -> str:
    """One column of a batch as one text; see `commit_grants`.

    Raises:
        MalformedEntry: a value has the separator in it, so that the columns would not fit together.
    """
    joined = SEPARATOR.join(column)
    if joined.count(SEPARATOR) != len(column) - 1:
        raise MalformedEntry("a grant has a control character in it")
    return joined


def _confirm(group: Group, first_seq: int, issued_ms: int, codes: Sequence[str]) -> list[Confirmation]:
    """Confirmations of a group whose vouchers are numbered from `first_seq`."""
    _, _, numbers, _, places, _, _ = zip(*group.grants, strict=True)
    seqs = range(first_seq, first_seq + len(numbers))
    rows = zip(places, repeat(int(Verdict.COMMITTED)), seqs, repeat(issued_ms), codes, numbers, strict=False)
    return list(map(Confirmation._make, rows))
