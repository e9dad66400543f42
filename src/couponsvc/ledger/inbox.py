"""What a drainer gets to settle: new entries, its own unfinished ones, and those of the dead.

Nothing on the stream is lost between two drainers: an entry handed out stays in its consumer's
list until it is acknowledged. After any failure the own list is read again; what another
consumer has left lying is taken over: at once where its connection is gone, as a killed process's is.
"""

from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Final, NamedTuple

from redis.exceptions import ResponseError

from couponsvc import limits
from couponsvc.ledger import metrics
from couponsvc.ledger.stream import GrantStream, RawEntry
from couponsvc.support.resp import LineLost
from couponsvc.support.server_identity import ServerIdentity
from couponsvc.values import wire

LOOK_FOR_DEAD_SHARE: Final = 0.5
"""How often the lists of others are looked through, as a share of the idle time."""
GRANT_BYTES: Final = 60
"""A packed grant with usual tokens and numbers."""
LOOK_FOR_GONE_EVERY_S: Final = 1.0
GONE_IDLE_MS: Final = 500
"""Entries of a consumer without a connection are claimed once they have lain for so long: it may be
connecting anew, and of several who see it one is to have them."""
LIST_END: Final = "0-0"
GATHER_BELOW_SHARE: Final = 1 / 3
"""A read that brings less than this share of the last one asks once more before the commit.

Grabs come in waves: whoever was confirmed together comes again together, the first a moment before
the others, and would be committed alone. One exchange with Redis is that moment. A lonely grab
follows another one of its size and never waits."""


class Unreadable(NamedTuple):
    """An entry that cannot be settled, and why; the reason holds none of its data."""

    entry_id: str
    reason: str


class Delivery(NamedTuple):
    """What one read brought."""

    entries: Sequence[wire.Entry]
    unreadable: Sequence[Unreadable]
    deleted: Sequence[str]
    """Ids in the own list whose entries are gone from the stream."""
    server: ServerIdentity
    """Where all of it was read."""


class Inbox:
    """Reads a shard's stream on behalf of one drainer."""

    def __init__(
        self, stream: GrantStream, take_over_idle_ms: int, now_s: Callable[[], float] = monotonic
    ) -> None:
        self._stream = stream
        self._idle_ms = take_over_idle_ms
        self._now_s = now_s
        self._has_group = False
        self._own_after: str | None = None
        self._cursor = LIST_END
        self._look_at_s = now_s()
        self._look_for_gone_at_s = now_s()
        self._last_count = 0
        """Grants that the last read of new entries brought, about."""

    def recover(self) -> None:
        """After a failure: make sure of the group, and read the own list before anything new."""
        self._has_group = False
        self._own_after = LIST_END

    async def read(self, block_ms: int) -> Delivery:
        """Read what is to be settled next; waits up to `block_ms` for new entries.

        Raises:
            redis.exceptions.RedisError, OSError: Redis is away; call `recover`, then again.
        """
        await self._stream.line()
        server = self._stream.server
        try:
            if not self._has_group:
                await self._stream.create_group()
                self._has_group = True
            entries = await self._next(block_ms)
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            self._has_group = False  # the server was wiped: the next read makes the group anew
            entries = []
        if server is None or self._stream.server is not server:
            raise LineLost("the line was opened anew in the midst of a read, perhaps to another server")
        return _sort(entries, server)

    async def _next(self, block_ms: int) -> list[RawEntry]:
        count = limits.DRAIN_READ_COUNT
        if self._own_after is not None:
            own = await self._stream.read_own(self._own_after, count)
            if own:
                self._own_after = own[-1].entry_id.decode()
                return own
            self._own_after = None
        if self._now_s() >= self._look_at_s:
            left_lying = await self._take_over(count)
            if left_lying:
                return left_lying
        if self._now_s() >= self._look_for_gone_at_s:
            left_behind = await self._stream.claim_gone(GONE_IDLE_MS, count)
            if left_behind:
                metrics.take_overs.inc(len(left_behind))
                return left_behind
            self._look_for_gone_at_s = self._now_s() + LOOK_FOR_GONE_EVERY_S
        entries = fresh = await self._stream.read_new(count, block_ms)
        grants = _grants_about(entries)
        if entries and grants < self._last_count * GATHER_BELOW_SHARE:
            fresh = await self._stream.read_new(count, None)
            entries += fresh
            grants = _grants_about(entries)
        while len(fresh) == count and grants < limits.DRAIN_GRANTS_MAX_COUNT:
            fresh = await self._stream.read_new(count, None)
            entries += fresh
            grants = _grants_about(entries)
        if entries:
            self._last_count = grants
        return entries

    async def _take_over(self, count: int) -> list[RawEntry]:
        """One page of what others left lying; the next read goes on until the list's end."""
        self._cursor, entries = await self._stream.take_over(self._idle_ms, self._cursor, count)
        if self._cursor == LIST_END:
            self._look_at_s = self._now_s() + self._idle_ms * LOOK_FOR_DEAD_SHARE / 1000
        metrics.take_overs.inc(len(entries))
        return entries


def in_commits(entries: Sequence[wire.Entry]) -> Iterator[list[wire.Entry]]:
    """Cut a delivery into what one transaction takes: at most DRAIN_GRANTS_MAX_COUNT grants."""
    batch: list[wire.Entry] = []
    count = 0
    for entry in entries:
        if batch and count + len(entry.grants) > limits.DRAIN_GRANTS_MAX_COUNT:
            yield batch
            batch, count = [], 0
        batch.append(entry)
        count += len(entry.grants)
    if batch:
        yield batch


def _grants_about(entries: Sequence[RawEntry]) -> int:
    """Estimate the grants of raw entries, to stop reading; `in_commits` cuts exactly."""
    return sum(len((entry.fields or {}).get(b"g", b"")) for entry in entries) // GRANT_BYTES


def _sort(raws: Sequence[RawEntry], server: ServerIdentity) -> Delivery:
    entries: list[wire.Entry] = []
    unreadable: list[Unreadable] = []
    deleted: list[str] = []
    for raw in raws:
        if not raw.fields:
            deleted.append(raw.entry_id.decode())
            continue
        try:
            entries.append(wire.decode_entry(raw.entry_id, raw.fields))
        except wire.MalformedEntry as error:
            unreadable.append(Unreadable(raw.entry_id.decode(), str(error)))
    return Delivery(entries, unreadable, deleted, server)
