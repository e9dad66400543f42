"""Checks a Redis server that nobody has checked yet, and says so in Postgres when it is sound.

Until then every API process refuses to decide by itself: it compares the server it connects to
with the row of `blessings`. So nothing is granted on the server while it is checked here, and
only drainers still change it, by acknowledging what was granted before. They commit nothing else
meanwhile: what somebody still holds in memory of the server before is fenced off first (decision
0019), so that Postgres does not move under the examination.

Sound is a server on which every drop either agrees with Postgres or is closed: its epoch was raised
in Postgres, so that no grant of it can ever be confirmed, and then fenced on the server, so that
none is given. Hence drops that must be loaded again are closed before the blessing and loaded after
it, and the others need not wait for them.
"""

from collections.abc import Sequence
from time import monotonic
from typing import Final, NamedTuple

import asyncpg
from redis.asyncio import Redis

from couponsvc import limits
from couponsvc.gate.loading import PublishResult
from couponsvc.reconcile import metrics
from couponsvc.reconcile.examining import Examination, examine
from couponsvc.reconcile.identity import begin_check, read_identity, write_blessing
from couponsvc.reconcile.rebuild import Lost, load_all_raised, open_new_drops, raise_epochs
from couponsvc.reconcile.snapshot import LedgerSide, Pool
from couponsvc.support import logs
from couponsvc.support.bulk import BulkConnection
from couponsvc.support.kill_points import kill_point
from couponsvc.support.server_identity import ServerIdentity
from couponsvc.values import keys
from couponsvc.values.drop import Drop

ATTEMPTS_MAX_COUNT: Final = 3
"""How often a drop is examined again because another reconciler was at it."""

_BEFORE_BLESSING: Final = kill_point("bless.before_blessing")
_AFTER_BLESSING: Final = kill_point("bless.after_blessing")

log = logs.get("reconcile")


class ServerChanged(Exception):
    """The server was replaced, or another one blessed, during the check; it begins again."""


class Blessed:
    """What a check did, by number of drops."""

    def __init__(self) -> None:
        self.sound_count = 0
        self.loaded_count = 0
        self.rebuilt_count = 0
        self.closed_count = 0


class _Checked(NamedTuple):
    """The drops of a server, none of which can be granted unless it is sound."""

    sound: list[int]
    fresh: list[Drop]
    """Of which nothing was ever anywhere."""
    raised: list[LedgerSide]
    """Closed, to be loaded."""


async def bless_server(
    pool: "Pool[asyncpg.Record]",
    redis: Redis,
    shard: int,
    server: ServerIdentity,
    previous: ServerIdentity | None,
) -> Blessed:
    """Examine every drop of the shard, close what is wrong, bless the server, then load what was closed.

    Args:
        pool: Of the ledger.
        redis: The shard's server; its connections are opened anew first.
        shard: Which.
        server: Who it said it is, before anything was examined.
        previous: Who was blessed when the check began; None: nobody ever.

    Raises:
        ServerChanged: begin again.
        OSError, TimeoutError, asyncpg.PostgresError, redis.exceptions.RedisError: one of the
            two cannot be asked. Where the server was blessed, what is still closed is found and
            loaded by the next look.
    """
    began = monotonic()
    await redis.connection_pool.disconnect()  # none may lead to the server before
    if previous is not None and not await begin_check(pool, shard, server, previous):
        raise ServerChanged("another Redis server was blessed before the check")
    checked = await _check(pool, redis, shard, began, first_ever=previous is None)
    if await read_identity(redis) != server:
        raise ServerChanged("the Redis server was replaced during its check")
    _BEFORE_BLESSING()
    if not await write_blessing(pool, shard, server, previous):
        raise ServerChanged("another Redis server was blessed during the check")
    _AFTER_BLESSING()
    await _announce(redis, shard, checked.sound)
    closed_s = monotonic() - began
    metrics.BLESSING_SECONDS.observe(closed_s)
    log.info(
        "redis server blessed", run_id=server.run_id, closed_s=round(closed_s, 3),
        sound_count=len(checked.sound), fresh_count=len(checked.fresh), lost_count=len(checked.raised),
    )  # fmt: skip
    done = Blessed()
    done.sound_count = len(checked.sound)
    opened = await open_new_drops(pool, redis, checked.fresh)
    done.loaded_count = sum(opened)
    results = await load_all_raised(pool, redis, checked.raised, began)
    done.rebuilt_count = results.count(PublishResult.PUBLISHED)
    done.closed_count = len(results) - done.rebuilt_count
    if results:
        log.info("drops loaded again", seconds=round(monotonic() - began, 3), **vars(done))
    return done


async def _check(
    pool: "Pool[asyncpg.Record]", redis: Redis, shard: int, began: float, *, first_ever: bool
) -> _Checked:
    """Leave every drop sound or closed on the server."""
    give_up_at = began + limits.DRAIN_PATIENCE_MS / 1000
    checked = _Checked([], [], [])
    drop_nos: list[int] | None = None
    for _ in range(ATTEMPTS_MAX_COUNT):
        lost: list[Lost] = []
        for examination in await examine(pool, redis, shard, drop_nos, give_up_at, mend=True):
            look = examination.look
            if not examination.findings:
                checked.sound.append(look.drop_no)
            elif first_ever and look.never_open:
                checked.fresh.append(look.ledger.drop)
            else:
                lost.append(Lost(look.ledger.drop, look.after.published))
                _tell(examination)
        raised = await raise_epochs(pool, redis, lost)
        checked.raised.extend(raised)
        drop_nos = sorted({drop.drop_no for drop, _ in lost} - {side.drop.drop_no for side in raised})
        if not drop_nos:
            return checked
    raise ServerChanged(f"{len(drop_nos or ())} drops are being rebuilt by another reconciler")


def _tell(examination: Examination) -> None:
    drop_id = examination.look.ledger.drop.drop_id
    for finding in examination.findings:
        log.warning("drop does not agree", drop_id=drop_id, kind=finding.kind, detail=finding.detail)


async def _announce(redis: Redis, shard: int, drop_nos: Sequence[int]) -> None:
    """Let API processes read anew what they may have missed while the server was away."""
    channel = keys.control_channel(shard)
    async with BulkConnection(redis) as bulk:
        await bulk.send_all([("PUBLISH", channel, drop_no) for drop_no in drop_nos])
        for _ in drop_nos:
            await bulk.reply()
