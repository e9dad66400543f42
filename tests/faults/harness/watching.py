"""Watches for the times in which the API talks to a Redis that nobody has checked yet.

After a failover or a restart it is another server until its row stands in `blessings`; after a wipe a
drop's state is gone until its epoch was raised. A grab that began and was answered within such a time,
and was answered as only the gate can, was decided by an unchecked Redis. That is said only of numbers
that were not asked before: for the others Postgres may have had a voucher already. What Postgres shows is
read directly, and a time ends before the last question that still showed it: it is never longer than it was.
"""

import asyncio
import contextlib
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from redis.exceptions import RedisError

from couponsvc.engines.engine import HOST
from couponsvc.support.ending import end_tasks
from couponsvc.support.redis_client import open_redis
from couponsvc.values import keys
from tests.faults.harness.deployment import Deployment
from tests.faults.harness.history import GRAB, Call

SHARD: Final = 0
POLL_S: Final = 0.01
WATCHED_MAX_S: Final = 15.0
"""A server may stay unchecked as long as a fault keeps the reconciler away; enough of it is seen then."""
ANSWER_TIMEOUT_S: Final = 1.0
DECIDED: Final = frozenset({"sold_out", "person_limit", "paused"})
"""Refusals that only the gate can know of."""

_AWAY: Final = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)

_BLESSED: Final = "SELECT run_id FROM blessings WHERE shard = 0"
"""The run id alone: the replication id of a restarted primary changes when the first replica attaches."""
_EPOCHS: Final = "SELECT drop_no, drop_id, epoch FROM drops"


class Window(NamedTuple):
    """A time in which nobody had checked the state of a drop, or of all."""

    drop_id: str
    """Empty: every drop."""
    began_ns: int
    ended_ns: int


class Witness:
    """Notes windows of one run. Each question is asked from a task of its own; `end` stops them all."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment: Final = deployment
        self._watching: Final[set[asyncio.Task[None]]] = set()
        self.windows: Final[list[Window]] = []

    async def end(self) -> None:
        """Nothing that was watched may be relied on from now on: the servers change again."""
        await end_tasks(*self._watching)

    async def server_changed(self) -> None:
        """The API was led to another server this moment, or to the same one after a restart."""
        began_ns = time.monotonic_ns()
        with contextlib.suppress(RedisError, OSError):
            self._start(self._until_blessed(began_ns, await self._server_of_the_api()))

    async def loaded(self) -> Mapping[str, int]:
        """Epochs of the drops whose state Redis has now.

        After a wipe only a higher one may be decided by. What is being rebuilt now has its higher epoch
        already and may be loaded after the wipe as well, so it is left out.
        """
        try:
            async with open_redis(self._deployment.redis_url, max_connections=1) as redis:
                published: Any = await redis.hgetall(keys.shard_key(SHARD))
            connection = await asyncpg.connect(self._deployment.postgres_dsn)
        except (RedisError, *_AWAY):
            return {}
        try:
            rows = await connection.fetch(_EPOCHS)
        except _AWAY:
            return {}
        finally:
            connection.terminate()
        return {
            row["drop_id"]: row["epoch"]
            for row in rows
            if published.get(keys.epoch_field(row["drop_no"]).encode()) == str(row["epoch"]).encode()
        }

    def wiped(self, epochs: Mapping[str, int]) -> None:
        """Every key was deleted this moment; `epochs` of the drops that were loaded just before."""
        self._start(self._until_raised(time.monotonic_ns(), epochs))

    def _start(self, watch: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._bounded(watch))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    async def _bounded(self, watch: Coroutine[Any, Any, None]) -> None:
        # While Postgres is away nothing can be learnt; what was seen until then counts.
        with contextlib.suppress(*_AWAY):
            async with asyncio.timeout(WATCHED_MAX_S):
                await watch

    async def _server_of_the_api(self) -> str:
        """Its run id, asked on the way that the API takes."""
        parts = urlsplit(self._deployment.redis_url)
        account = parts.netloc.rpartition("@")[0]
        netloc = f"{account}@{HOST}:{self._deployment.proxies.port('api-redis')}"
        url = urlunsplit(parts._replace(netloc=netloc))
        async with open_redis(url, max_connections=1, socket_timeout_s=ANSWER_TIMEOUT_S) as redis:
            server = await redis.info("server")
        return str(server["run_id"])

    async def _until_blessed(self, began_ns: int, run_id: str) -> None:
        connection = await asyncpg.connect(self._deployment.postgres_dsn)
        ended_ns = began_ns
        try:
            asked_ns = time.monotonic_ns()
            while await connection.fetchval(_BLESSED) != run_id:
                with contextlib.suppress(RedisError):
                    if await self._server_of_the_api() != run_id:  # replaced: another one may be checked
                        return
                    ended_ns = asked_ns
                await asyncio.sleep(POLL_S)
                asked_ns = time.monotonic_ns()
        finally:
            self.windows.append(Window("", began_ns, ended_ns))
            connection.terminate()

    async def _until_raised(self, began_ns: int, epochs: Mapping[str, int]) -> None:
        connection = await asyncpg.connect(self._deployment.postgres_dsn)
        ended_ns = dict.fromkeys(epochs, began_ns)
        waiting = set(epochs)
        try:
            while waiting:
                asked_ns = time.monotonic_ns()
                now = {row["drop_id"]: row["epoch"] for row in await connection.fetch(_EPOCHS)}
                waiting = {drop_id for drop_id in waiting if now[drop_id] == epochs[drop_id]}
                ended_ns |= dict.fromkeys(waiting, asked_ns)
                await asyncio.sleep(POLL_S)
        finally:
            self.windows.extend(Window(drop_id, began_ns, at_ns) for drop_id, at_ns in ended_ns.items())
            connection.terminate()


def within(calls: Sequence[Call], window: Window) -> Iterator[Call]:
    """Grabs that began and ended within a window; `calls` are in the order of their ends."""
    first = bisect_left(calls, window.began_ns, key=lambda call: call.ended_ns)
    for place in range(first, len(calls)):
        call = calls[place]
        if call.ended_ns > window.ended_ns:
            return
        if call.began_ns >= window.began_ns and call.action == GRAB and window.drop_id in {"", call.drop_id}:
            yield call


def judge_windows(calls: Sequence[Call], windows: Sequence[Window]) -> tuple[list[str], Counter[str]]:
    """What was answered within windows: `(violations, answers by status and code)`."""
    violations = []
    answers: Counter[str] = Counter()
    asked_first_ns: dict[tuple[str, str], int] = {}
    for call in calls:
        number = (call.partner_id, call.out_request_no)
        asked_first_ns[number] = min(call.began_ns, asked_first_ns.get(number, call.began_ns))
    for window in windows:
        for call in within(calls, window):
            answers[f"{call.status} {call.code}".rstrip()] += 1
            fresh = asked_first_ns[call.partner_id, call.out_request_no] >= window.began_ns
            if fresh and (call.status in (201, 202) or call.code in DECIDED):
                violations.append(
                    f"unchecked_silent: {call.status} {call.code} by a Redis that nobody had checked, "
                    f"{(call.began_ns - window.began_ns) / 1e6:.0f} ms after it appeared and "
                    f"{(window.ended_ns - call.ended_ns) / 1e6:.0f} ms before it was: {call}"
                )
    return violations, answers
