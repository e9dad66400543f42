"""The drainer: stream → ledger → confirmation, for one shard. Any number of them may run.

Who is authoritative: Postgres. A grant is told to its waiter only after its commit is known, and
leaves the stream only then. It is committed only if it was read from the server that is used: what was
read from one that was lost meanwhile is dropped, because nobody else remembers it (decision 0019).
Whatever dies in between, at whatever point, leaves the entry on the stream; the next drainer commits
it again and finds it committed.

Once a batch is committed, its confirmations, its acknowledgement and the read of the next batch leave
in one write, so that a turn is one exchange with Redis and one with Postgres.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic, time
from types import MappingProxyType
from typing import Final, NamedTuple, Self

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from couponsvc import limits
from couponsvc.ledger import codes, metrics
from couponsvc.ledger.acknowledge import ACKNOWLEDGE, Report, acknowledge_unread
from couponsvc.ledger.commit import Committer, UncheckedServer
from couponsvc.ledger.dead_letters import DeadLetters
from couponsvc.ledger.failures import Backoff, contradicts_the_schema, may_pass
from couponsvc.ledger.grouping import Settled
from couponsvc.ledger.inbox import Inbox, Unreadable, in_commits
from couponsvc.ledger.stream import GrantStream
from couponsvc.settings import Settings
from couponsvc.support import logs
from couponsvc.support.kill_points import kill_point
from couponsvc.support.postgres import open_pool
from couponsvc.support.redis_client import make_connection, open_redis
from couponsvc.support.resp import RespLine, open_line
from couponsvc.support.sealing import MasterKey
from couponsvc.support.server_identity import ServerIdentity
from couponsvc.values import keys
from couponsvc.values.outcome import Verdict
from couponsvc.values.wire import Entry, MalformedEntry

REPLY_TIMEOUT_S: Final = limits.DRAIN_BLOCK_MS / 1000 + 4.0
"""A read that waits as long as it may, plus what a living server needs at most."""
OBSERVE_EVERY_S: Final = 1.0
_AFTER_READ: Final = kill_point("drain.after_read")
_AFTER_COMMIT: Final = kill_point("drain.after_commit")
_AFTER_REPORT: Final = kill_point("drain.after_report")
_AFTER_ACKNOWLEDGEMENT: Final = kill_point("drain.after_acknowledgement")
CLOSE_TIMEOUT_S: Final = 2.0

_log = logs.get("couponsvc.ledger.drainer")


class DrainCounts(NamedTuple):
    """What one turn of a drainer did."""

    entries: int = 0
    grants: int = 0
    verdicts: Mapping[Verdict, int] = MappingProxyType({})
    dead_letters: int = 0
    acknowledged: int = 0
    """Entries acknowledged by this turn; another drainer may have been first."""

    @property
    def committed(self) -> int:
        """Grants that stand in Postgres, by this turn or an earlier one."""
        return self.verdicts.get(Verdict.COMMITTED, 0)


class Drainer:
    """Settles the grants of one shard. `open`, then `run` or `run_once`, then `close`."""

    def __init__(
        self,
        *,
        shard: int,
        pool: "asyncpg.Pool[asyncpg.Record]",
        redis: Redis,
        connect: Callable[[], Awaitable[RespLine]],
        take_over_idle_ms: int,
        unseal_code_key: Callable[[bytes], bytes],
    ) -> None:
        """Put a drainer together; `open` does it from settings.

        Args:
            shard: whose grants.
            pool: to the ledger; closed with the drainer, as is the Redis client.
            redis: for what is rare.
            connect: opens a line to Redis that has seen the script of the acknowledgement.
            take_over_idle_ms: after what idle time another drainer's entries are taken over.
            unseal_code_key: opens a program's sealed code key.
        """
        self.consumer: Final = f"drainer-{secrets.token_hex(8)}"
        """Unique per boot: a restarted drainer takes over from itself like from any other."""
        self._shard = shard
        self._pool = pool
        self._redis = redis
        self._stream = GrantStream(connect, keys.grants_key(shard), keys.GROUP, self.consumer)
        self._inbox = Inbox(self._stream, take_over_idle_ms)
        self._committer = Committer(pool, unseal_code_key, shard)
        self._dead_letters = DeadLetters(shard, pool, redis, self._stream)
        self._report: Report | None = None
        self._oldest_ms: int | None = None
        """When the oldest grant of the last turn was granted."""
        self._observe_at_s = 0.0

    @classmethod
    async def open(cls, settings: Settings) -> Self:
        """Connect to Postgres; Redis is connected to at the first read.

        Raises:
            OSError, asyncpg.PostgresError: Postgres cannot be reached.
            couponsvc.support.sealing.BadMasterKey: the master key is malformed.
        """
        master_key = MasterKey.from_base64(settings.master_key.get_secret_value())
        pool = await open_pool(settings.postgres_dsn.get_secret_value(), max_size=2)
        return cls(
            shard=settings.shard,
            pool=pool,
            redis=open_redis(settings.redis_url, max_connections=2),
            connect=partial(_connect, settings.redis_url),
            take_over_idle_ms=settings.take_over_idle_ms,
            unseal_code_key=lambda sealed: master_key.open(sealed, codes.KEY_PURPOSE),
        )

    async def close(self) -> None:
        """Finish the acknowledgement that is under way, leave the group, close the connections."""
        with suppress(RedisError, OSError):
            await self._acknowledged()
            await self._stream.leave()
        self._stream.close()
        await self._committer.close()
        await self._redis.aclose()
        try:
            await asyncio.wait_for(self._pool.close(), CLOSE_TIMEOUT_S)
        except TimeoutError:
            self._pool.terminate()

    async def run_once(self) -> DrainCounts:
        """Settle one delivery to its end; waits up to DRAIN_BLOCK_MS for one.

        While Postgres is away it repeats the commit, with growing pauses.

        Raises:
            redis.exceptions.RedisError, OSError: Redis is away. Call again; nothing is lost.
        """
        try:
            counts = await self._turn(asyncio.Event(), limits.DRAIN_BLOCK_MS)
            acknowledged = await self._acknowledged()
        except (RedisError, OSError):
            await self._recover()
            raise
        return counts._replace(acknowledged=counts.acknowledged + acknowledged)

    async def run(self, stop: asyncio.Event) -> None:
        """Settle deliveries until `stop` is set; rides out the absence of Redis and of Postgres."""
        backoff, told = Backoff(), ""
        while not stop.is_set():
            try:
                await self._turn(stop, limits.DRAIN_BLOCK_MS)
                await self._observe()
                backoff.reset()
                told = ""
            except (RedisError, OSError) as error:
                metrics.redis_absences.inc()
                if type(error).__name__ != told:  # once: it is tried again many times a second
                    told = type(error).__name__
                    _log.warning("redis_away", error=told)
                if isinstance(error, UncheckedServer):
                    backoff.reset()  # a check waits for us as soon as it has begun
                await self._recover()
                await _pause(stop, backoff.next_s())
        with suppress(RedisError, OSError):
            await self._acknowledged()

    async def _turn(self, stop: asyncio.Event, block_ms: int) -> DrainCounts:
        """Read, commit, and start to acknowledge; errors are Redis' only."""
        delivery = await self._inbox.read(block_ms)
        acknowledged = await self._acknowledged()  # on the same line, so it came before the delivery
        unreadable = list(delivery.unreadable)
        settled: list[Settled] = []
        for batch in in_commits(delivery.entries):
            _AFTER_READ()
            done, refused = await self._commit_until_known(batch, delivery.server, stop)
            unreadable += refused
            settled += done
            acknowledged += await self._acknowledged()
            if done:
                _AFTER_COMMIT()
                self._report = Report(await self._stream.line(), self._shard, done)
                _AFTER_REPORT()
        if delivery.deleted:
            await acknowledge_unread(self._redis, self._shard, delivery.deleted)
        dead_letters = 0
        for entry in unreadable:
            dead_letters += await self._dead_letters.set_aside(entry)
        self._oldest_ms = min([entry.granted_ms for entry, _ in settled], default=None)
        return _count(settled)._replace(dead_letters=dead_letters, acknowledged=acknowledged)

    async def _commit_until_known(
        self, batch: Sequence[Entry], server: ServerIdentity, stop: asyncio.Event
    ) -> tuple[list[Settled], list[Unreadable]]:
        """Commit a batch; repeat while Postgres is away. Entries whose data it refuses come back.

        Raises:
            UncheckedServer: as `Committer.commit`. Our line may lead to a server that is no longer used,
                so it is closed; what is on the server that is used comes back with the own list.
        """
        backoff = Backoff()
        while True:
            try:
                return await self._committer.commit(batch, server), []
            except UncheckedServer:
                self._stream.close()
                raise
            except Exception as error:  # noqa: BLE001 - whatever it was, grants may not be given up
                if contradicts_the_schema(error):
                    return await self._commit_one_by_one(batch, server, error, stop)
                metrics.repeats.inc()
                tell = _log.warning if may_pass(error) else _log.error
                tell("commit_repeats", error=type(error).__name__, entries=len(batch))
            await _pause(stop, backoff.next_s())
            if stop.is_set():
                return [], []  # the entries stay on the stream, in this consumer's list

    async def _commit_one_by_one(
        self, batch: Sequence[Entry], server: ServerIdentity, error: Exception, stop: asyncio.Event
    ) -> tuple[list[Settled], list[Unreadable]]:
        """Find the entry that Postgres refuses, so that the others do not wait for it."""
        if len(batch) == 1:
            if isinstance(error, MalformedEntry):
                return [], [Unreadable(batch[0].entry_id, str(error))]
            constraint = getattr(error, "constraint_name", None) or ""
            reason = f"refused by the ledger: {type(error).__name__} {constraint}".strip()
            return [], [Unreadable(batch[0].entry_id, reason)]
        settled: list[Settled] = []
        refused: list[Unreadable] = []
        for entry in batch:
            done, not_done = await self._commit_until_known([entry], server, stop)
            settled += done
            refused += not_done
        return settled, refused

    async def _acknowledged(self) -> int:
        """Wait for the replies to the report under way; how many entries it took off the stream."""
        report, self._report = self._report, None
        if report is None:
            return 0
        acknowledged = await report.acknowledged()
        _AFTER_ACKNOWLEDGEMENT()
        return acknowledged

    async def _recover(self) -> None:
        """After the line was lost: what was reported may be settled again, and what was read is read anew."""
        with suppress(RedisError, OSError):
            await self._acknowledged()
        self._inbox.recover()

    async def _observe(self) -> None:
        if monotonic() < self._observe_at_s:
            return
        self._observe_at_s = monotonic() + OBSERVE_EVERY_S
        backlog = await self._redis.hget(keys.shard_key(self._shard), keys.BACKLOG_FIELD)
        metrics.backlog.set(int(backlog or 0))
        age_s = 0.0 if self._oldest_ms is None else max(0.0, time() - self._oldest_ms / 1000)
        metrics.pending_age_seconds.set(age_s)


def _count(settled: Sequence[Settled]) -> DrainCounts:
    """Count the verdicts of a turn."""
    verdicts: Counter[Verdict] = Counter()
    for _, parts in settled:
        for part in parts:
            if part.all_committed:
                verdicts[Verdict.COMMITTED] += len(part.grants)
            else:
                verdicts.update([Verdict(row[1]) for row in part.confirmations])
    for verdict, count in verdicts.items():
        metrics.verdicts.count(verdict, count)
    return DrainCounts(len(settled), verdicts.total(), verdicts)


async def _connect(redis_url: str) -> RespLine:
    line = await open_line(make_connection(redis_url), timeout_s=REPLY_TIMEOUT_S)
    try:
        await line.call("SCRIPT", "LOAD", ACKNOWLEDGE.source)
    except BaseException:  # e.g. while the server loads its data: tried again soon, and often
        line.close()
        raise
    return line


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    """Wait, unless it is time to stop."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
