"""Commits grants: one transaction per batch, gap-free numbers, one answer per grant.

**Fast path**: one SQL statement per batch. A voucher's code depends on its number, so the
drainer foresees the numbers: it knows how many each drop had issued after the last commit. The
statement checks that the grants come from the server that is used, locks the drops, checks that
epoch and count are the foreseen ones, inserts, advances the count and writes the events, or leaves a
drop untouched; then it is tried again with the
drop's true figures. Nearly every batch is for one drop and has a leaner statement of its own.

**Slow path**: an explicit transaction for whatever the fast path cannot do: a duplicate, a
closed epoch, an exhausted quantity. It locks the drops, reads the rows that stand, rules on every
grant in order (`verdicts.classify`) and inserts the rest.

Both paths may be run again with the same grants at any time: what is committed is answered as
committed. A failure therefore never needs undoing, only repeating.
"""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Final

import asyncpg
from redis.exceptions import RedisError

from couponsvc.ledger import metrics
from couponsvc.ledger.codes import CodeBook
from couponsvc.ledger.foreseen import CodeRoll, Figures, arguments_of, confirm, texts_of
from couponsvc.ledger.grouping import Answers, Group, Settled, assemble, group_entries
from couponsvc.ledger.settling import settle
from couponsvc.support.server_identity import ServerIdentity
from couponsvc.support.sql import Queries
from couponsvc.values.wire import DropEpoch, Entry

FORESIGHT_ATTEMPTS_MAX_COUNT: Final = 3
"""Fast attempts per batch; each one that fails reports true figures, so two do unless drainers race."""
SETTLE_ATTEMPTS_MAX_COUNT: Final = 5
"""Slow attempts before the failure is the caller's: each lost a race for a number on another drop."""
SETTLE_PAUSE_MAX_S: Final = 0.05
FIGURES_MAX_COUNT: Final = 2_500
"""Drops whose figures and next codes (32 kB) a drainer remembers; a forgotten one costs one more query."""

UNKNOWN: Final = ServerIdentity("", "")
"""Read from no server that anybody checked."""

_queries = Queries("couponsvc.ledger", "commit")
_TO_DROP: Final = _queries["commit_to_drop"]
_TO_DROPS: Final = _queries["commit_to_drops"]
_PLAN_ONCE: Final = "SET plan_cache_mode = force_generic_plan"
"""Left to itself the server plans the first five commits of a connection anew, each at its own cost."""
_Source = tuple[int, str, str]
"""Shard, run id and replication id, as the statements take them."""
_RACE_LOST = (
    asyncpg.UniqueViolationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
)


class UncheckedServer(RedisError):
    """Grants were read from a server that is neither blessed nor being checked: nothing was committed.

    Either the server is new and nobody looked at it yet, or it is no longer used.
    """


class Committer:
    """Commits batches of one shard over one connection of its own. Not for concurrent use."""

    def __init__(
        self,
        pool: "asyncpg.Pool[asyncpg.Record]",
        unseal_code_key: Callable[[bytes], bytes],
        shard: int,
    ) -> None:
        self._pool = pool
        self._unseal = unseal_code_key
        self._shard = shard
        self._source: _Source = (shard, *UNKNOWN)
        """Where the grants at hand were read."""
        self._connection: asyncpg.pool.PoolConnectionProxy[asyncpg.Record] | None = None
        self._figures: dict[int, Figures] = {}
        self._books: dict[int, CodeBook] = {}

    async def commit(self, entries: Sequence[Entry], read_from: ServerIdentity = UNKNOWN) -> list[Settled]:
        """Commit all grants of the entries and say what became of each.

        Args:
            entries: Of this shard's stream, all read from one server.
            read_from: That server. Where none was ever blessed, from any.

        Returns:
            One element per entry, same order. Everything in it is committed: it may be told.

        Raises:
            UncheckedServer: nothing of `read_from` may be committed (now).
            MalformedEntry: as `check_entry`; nothing was committed.
            OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError: nothing may be
                told. The batch may or may not be committed; run it again, with this object.
        """
        self._source = (self._shard, *read_from)
        groups = group_entries(entries)
        answers: dict[DropEpoch, Answers] = {}
        started = perf_counter()
        try:
            if len({group.key.drop_no for group in groups}) == len(groups):
                answers = await self._commit_foreseen(groups)
            rest = [group for group in groups if group.key not in answers]
            metrics.commits.count("slow" if rest else "fast")
            if rest:
                answers |= await self._settle(rest)
        except BaseException:
            await self._give_up()
            raise
        metrics.commits.observe(perf_counter() - started)
        metrics.verdicts.observe(sum([len(group.grants) for group in groups]))
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
                if len(fitting) == 1 and _leaves_units(fitting[0], known):
                    answers |= await self._commit_to_drop(fitting[0], known)
                else:
                    answers |= await self._commit_to_drops(fitting, known)
            except (*_RACE_LOST, asyncpg.CheckViolationError):
                break  # the whole statement was undone: duplicates, to be ruled on one by one
            if len(answers) == len(groups):
                break
        return answers

    async def _commit_to_drop(
        self, group: Group, known: Mapping[int, Figures]
    ) -> Mapping[DropEpoch, Answers]:
        """One fast attempt at one drop; forgets its figures where they were not true."""
        drop_no, epoch = group.key
        figures, count = known[drop_no], len(group.grants)
        codes, columns = figures.roll.codes(figures.issued + 1, count), group.columns()
        connection = await self._lease()
        rows = await connection.fetch(
            _TO_DROP, drop_no, epoch, figures.issued, count, *texts_of(columns, codes), *self._source
        )
        if not rows:
            self._figures.pop(drop_no, None)
            return {}
        figures.issued += count
        return {group.key: confirm(columns, figures.issued - count + 1, rows[0][0], codes)}

    async def _commit_to_drops(
        self, groups: Sequence[Group], known: Mapping[int, Figures]
    ) -> Mapping[DropEpoch, Answers]:
        """One fast attempt. Corrects the figures of every drop from what the statement reports."""
        figures = [known[group.key.drop_no] for group in groups]
        codes = [f.roll.codes(f.issued + 1, len(g.grants)) for f, g in zip(figures, groups, strict=True)]
        columns = [group.columns() for group in groups]
        texts = [texts_of(turned, written) for turned, written in zip(columns, codes, strict=True)]
        connection = await self._lease()
        rows = await connection.fetch(_TO_DROPS, *arguments_of(groups, figures, texts), *self._source)
        committed: dict[int, tuple[int, int]] = {}
        for drop_no, epoch, issued, quantity, vouchers, issued_ms in rows:
            true = known[drop_no]
            true.epoch, true.issued, true.quantity = epoch, issued, quantity
            if vouchers:
                committed[drop_no] = (issued - vouchers + 1, issued_ms)
        return {
            group.key: confirm(turned, *committed[group.key.drop_no], written)
            for group, turned, written in zip(groups, columns, codes, strict=True)
            if group.key.drop_no in committed
        }

    async def _settle(self, groups: Sequence[Group]) -> dict[DropEpoch, Answers]:
        """The slow path, repeated while another transaction took a number in between."""
        for attempt in range(SETTLE_ATTEMPTS_MAX_COUNT):
            known = await self._foresee([group.key.drop_no for group in groups])
            connection = await self._lease()
            try:
                async with connection.transaction():
                    if await connection.fetchval(_queries["lock_source"], *self._source) is False:
                        raise UncheckedServer("grants were read from a server that nobody has checked")
                    answers = await settle(connection, groups, {no: f.roll.book for no, f in known.items()})
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
            for drop_no, epoch, issued, quantity, program_no, sealed in await connection.fetch(
                _queries["load_figures"], unseen
            ):
                book = self._books.get(program_no)
                if book is None:
                    book = self._books[program_no] = CodeBook(self._unseal(sealed))
                self._figures[drop_no] = Figures(epoch, issued, quantity, CodeRoll(book, drop_no))
        return {drop_no: self._figures[drop_no] for drop_no in drop_nos if drop_no in self._figures}

    async def _lease(self) -> "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]":
        """The connection of this committer; a new one after a failure."""
        if self._connection is None:
            self._connection = await self._pool.acquire()
            await self._connection.execute(_PLAN_ONCE)
        return self._connection

    async def _give_up(self) -> None:
        """Forget the connection and every figure: after a failure neither can be trusted."""
        self._figures.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()
            await self._pool.release(connection)


def _leaves_units(group: Group, known: Mapping[int, Figures]) -> bool:
    """Whether units remain after the group; its last one is told as well, which one statement does."""
    figures = known[group.key.drop_no]
    return figures.issued + len(group.grants) < figures.quantity
