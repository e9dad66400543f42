"""The grant stream's commands, on a line of the drainer's own, with the types of their replies."""

import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from couponsvc.support.resp import Argument, RespLine
from couponsvc.support.server_identity import INFO_COMMAND, NotMaster, ServerIdentity, identity_of

_NAME_OF_CLIENT: Final = re.compile(rb" name=(\S+) ")


class RawEntry(NamedTuple):
    """A stream entry as Redis returned it. `fields` is empty where the entry was deleted."""

    entry_id: bytes
    fields: dict[bytes, bytes] | None


class GrantStream:
    """A shard's stream as one member of its consumer group sees it.

    Every method raises `redis.exceptions.RedisError` or `OSError` where Redis cannot answer; entries
    that it had already handed over are then in this consumer's list and come back with `read_own`.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[RespLine]], stream: str, group: str, consumer: str
    ) -> None:
        self._connect = connect
        self._stream = stream
        self._group = group
        self._consumer = consumer
        self._line: RespLine | None = None
        self.server: ServerIdentity | None = None
        """Who is at the other end of the line; a new object for each line."""

    async def line(self) -> RespLine:
        """The line to Redis, opened anew where it was lost. It bears our name, for `claim_gone`."""
        if self._line is None or not self._line.usable:
            line = await self._connect()
            try:
                with suppress(ResponseError):  # not permitted: then nobody can tell that we are gone
                    await line.call("CLIENT", "SETNAME", self._consumer)
                self.server = identity_of(await line.call(*INFO_COMMAND))
            except NotMaster as error:
                line.close()
                raise RedisConnectionError(str(error)) from error
            except BaseException:
                line.close()
                raise
            self._line = line
        return self._line

    def close(self) -> None:
        """Close the line."""
        if self._line is not None:
            self._line.close()

    async def create_group(self) -> None:
        """Make stream and group where they are missing, reading from the very first entry."""
        try:
            await self._call("XGROUP", "CREATE", self._stream, self._group, "0", "MKSTREAM")
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def read_new(self, count: int, block_ms: int | None) -> list[RawEntry]:
        """Entries that no consumer has seen, at most `count`; None does not wait."""
        return await self._read(">", count, block_ms)

    async def read_own(self, after: str, count: int) -> list[RawEntry]:
        """Entries handed to this consumer and not acknowledged, with ids after `after`."""
        return await self._read(after, count, None)

    async def take_over(self, idle_ms: int, cursor: str, count: int) -> tuple[str, list[RawEntry]]:
        """Entries that any consumer left lying for `idle_ms`; they become this consumer's.

        Returns:
            The cursor to go on from (`0-0`: the whole list was seen), and the entries.
        """
        reply = await self._call(
            "XAUTOCLAIM", self._stream, self._group, self._consumer, idle_ms, cursor, "COUNT", count
        )
        return reply[0].decode(), _raw_entries(reply[1])

    async def claim_gone(self, idle_ms: int, count: int) -> list[RawEntry]:
        """Entries of consumers that have no connection any more; they become this consumer's.

        The connection of a process that was killed is closed by its system at once. One that is only
        cut off may lose entries to us that it is about to commit: harmless, as every replay is. Where
        the server does not let us see names, nothing is claimed here.
        """
        suspects = await self._holding_others()
        if not suspects:
            return []
        try:
            clients: bytes = await self._call("CLIENT", "LIST")
        except ResponseError:
            return []
        present = set(_NAME_OF_CLIENT.findall(clients))
        if self._consumer.encode() not in present:
            return []
        claimed: list[RawEntry] = []
        for suspect in suspects:
            if suspect not in present and len(claimed) < count:
                claimed += await self._claim(suspect, idle_ms, count - len(claimed))
        return claimed

    async def _holding_others(self) -> list[bytes]:
        """Names of the other consumers that have entries in their hands."""
        names = []
        for row in await self._call("XINFO", "CONSUMERS", self._stream, self._group):
            facts = dict(zip(row[::2], row[1::2], strict=True))
            if facts[b"pending"] and facts[b"name"] != self._consumer.encode():
                names.append(facts[b"name"])
        return names

    async def _claim(self, consumer: bytes, idle_ms: int, count: int) -> list[RawEntry]:
        rows = await self._call(
            "XPENDING", self._stream, self._group, "IDLE", idle_ms, "-", "+", count, consumer
        )
        if not rows:
            return []
        ids = [row[0] for row in rows]
        return _raw_entries(
            await self._call("XCLAIM", self._stream, self._group, self._consumer, idle_ms, *ids)
        )

    async def deliveries(self, entry_id: str) -> int:
        """How often an entry was handed out; 0 where it is not pending any more."""
        reply = await self._call("XPENDING", self._stream, self._group, entry_id, entry_id, 1)
        return int(reply[0][3]) if reply else 0

    async def leave(self) -> None:
        """Remove this consumer from the group, unless entries are still in its hands."""
        reply = await self._call("XPENDING", self._stream, self._group, "-", "+", 1, self._consumer)
        if not reply:  # removing a consumer forgets its entries, so only an idle one may leave
            await self._call("XGROUP", "DELCONSUMER", self._stream, self._group, self._consumer)

    async def _read(self, after: str, count: int, block_ms: int | None) -> list[RawEntry]:
        patience: tuple[Argument, ...] = () if block_ms is None else ("BLOCK", block_ms)
        reply = await self._call(
            "XREADGROUP", "GROUP", self._group, self._consumer, "COUNT", count, *patience,
            "STREAMS", self._stream, after,
        )  # fmt: skip
        return _raw_entries(reply[0][1]) if reply else []

    async def _call(self, *command: Argument) -> Any:  # noqa: ANN401 - as many shapes as there are commands
        return await (await self.line()).call(*command)


async def newest_entry_id(redis: Redis, stream: str) -> str | None:
    """Id of the youngest entry, or None where the stream is empty or missing.

    Raises:
        redis.exceptions.RedisError: the stream cannot be read.
    """
    reply: Any = await redis.xrevrange(stream, count=1)
    return reply[0][0].decode() if reply else None


async def entries_between(redis: Redis, stream: str, first: str, last: str, count: int) -> list[RawEntry]:
    """Up to `count` entries from `first` to `last`, both as XRANGE takes them.

    Raises:
        redis.exceptions.RedisError: the stream cannot be read.
    """
    reply: Any = await redis.xrange(stream, first, last, count)
    return [RawEntry(*entry) for entry in reply or []]


def _raw_entries(reply: list[list[Any]]) -> list[RawEntry]:
    """Entries as a line returns them: `[id, [field, value, …]]`, or `[id, None]` of a deleted one."""
    return [
        RawEntry(entry_id, dict(zip(fields[::2], fields[1::2], strict=True)) if fields else None)
        for entry_id, fields in reply
    ]
