"""Failovers: a replica that missed the last writes is promoted, and the old primary comes back."""

import asyncio
import time
from collections.abc import Iterable
from typing import Final

from redis.asyncio import Redis

from couponsvc.engines.engine import HOST
from couponsvc.support.redis_client import open_redis
from tests.faults.harness.engine_faults import EngineFaults
from tests.faults.harness.proxy import Address, Proxies, Toxic, Way

REPLICATION: Final = "replica-redis"
"""The proxy that carries it."""
STALE_S: Final = 0.5
LINK_PATIENCE_S: Final = 20.0
LOOK_EVERY_S: Final = 0.02
OTHER: Final = {"redis": "replica", "replica": "redis"}


class Failover(EngineFaults):
    """Needs a replica. `primary` is the server that everybody talks to, or most."""

    def __init__(self) -> None:
        super().__init__()
        self.proxies: Final = Proxies()
        self._follower: str | None = None

    def cut_replication(self) -> None:
        """From now on the replica misses every write; neither side notices yet."""
        self.proxies.toxic(REPLICATION, Toxic(cut=Way.BOTH))

    async def failover(
        self, *, stale_after: bool = True, stale_s: float = STALE_S, kinds: Iterable[str] = ()
    ) -> None:
        """Promote the server that follows, and lead everybody to it. The old primary goes on running.

        Args:
            stale_after: The replication was cut some time before, so acknowledged writes are lost.
            stale_s: How long; 0 where `cut_replication` was called before.
            kinds: Only processes of these kinds are led there: two servers are written to at once. `primary`
                stays then.
        """
        promoted = OTHER[self.primary]
        if stale_after:
            self.cut_replication()
            await asyncio.sleep(stale_s)
        else:
            await self.until_replicated()
        self._follower = None
        async with self._redis_at(promoted) as redis:
            await redis.replicaof("NO", "ONE")
        self._lead(promoted, kinds)

    async def fail_back(self, kinds: Iterable[str] = ()) -> None:
        """Lead everybody, or only some kinds, to the other server: the old primary with its old data."""
        self._lead(OTHER[self.primary], kinds)

    async def rejoin(self) -> None:
        """Lead everybody to the primary and let the other server follow it, losing what it had; as in the
        beginning."""
        self.proxies.heal(REPLICATION)
        self._lead(self.primary, ())
        if self._follower != OTHER[self.primary]:
            await self._follow(OTHER[self.primary])
        await self.until_replicated()

    async def until_replicated(self) -> None:
        """Return when the follower has every write of the primary.

        Raises:
            TimeoutError: the link does not come up, or the follower does not keep up.
        """
        give_up_at = time.monotonic() + LINK_PATIENCE_S
        async with self._redis() as primary, self._redis_at(OTHER[self.primary]) as follower:
            while True:
                ours, theirs = await primary.info("replication"), await follower.info("replication")
                caught_up = (
                    theirs.get("master_link_status") == "up"
                    and theirs["master_replid"] == ours["master_replid"]
                    and theirs["slave_repl_offset"] >= ours["master_repl_offset"]
                )
                if caught_up:
                    return
                if time.monotonic() > give_up_at:
                    raise TimeoutError(f"the replica does not follow within {LINK_PATIENCE_S} s")
                await asyncio.sleep(LOOK_EVERY_S)

    async def _follow(self, name: str) -> None:
        """Let a server follow the primary, now and after each restart."""
        self._follower = name
        target = Address(HOST, self._redis_engine(OTHER[name]).port)
        self.proxies.aim(REPLICATION, target)
        self.proxies.reset(REPLICATION)
        async with self._redis_at(name) as redis:
            await redis.config_set(
                "masterauth", self._redis_engine(name).url.split("@")[0].rpartition(":")[2]
            )
            await redis.execute_command("REPLICAOF", HOST, str(self.proxies.port(REPLICATION)))  # type: ignore[no-untyped-call]

    async def _started(self, name: str) -> None:
        await super()._started(name)
        if name == self._follower:
            await self._follow(name)

    def _lead(self, name: str, kinds: Iterable[str]) -> None:
        wanted = set(kinds)
        target = Address(HOST, self._redis_engine(name).port)
        for proxy in self.proxies.names:
            kind, _, server = proxy.rpartition("-")
            if server == "redis" and proxy != REPLICATION and (not wanted or kind in wanted):
                self.proxies.aim(proxy, target)
                self.proxies.reset(proxy)
        if not wanted:
            self.primary = name

    def _redis_at(self, name: str) -> Redis:
        return open_redis(self.redis_url_of(name), max_connections=1)
