"""What all faults of a run share: the deployment, what is wrong with its lines, who watches its servers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from tests.faults.harness.deployment import Deployment
from tests.faults.harness.proxy import Toxic
from tests.faults.harness.watching import Witness


class Inflicting:
    """Handed to every fault."""

    def __init__(self, deployment: Deployment, over: asyncio.Event) -> None:
        self.deployment: Final = deployment
        self.over: Final = over
        self.hit_points: Final[list[str]] = []
        self.witness: Final = Witness(deployment)
        self._wrong: Final[dict[str, list[Toxic]]] = {}

    # --- changes of the server, each of them watched ------------------------------------------
    async def restart_redis(self, *, keep_data: bool) -> None:
        """Kill it and start it again, with its data or without."""
        await self.witness.end()
        await self.deployment.redis_restart(keep_data=keep_data)
        await self.witness.server_changed()

    async def wipe_redis(self) -> None:
        """Delete every key."""
        await self.witness.end()
        loaded = await self.witness.loaded()
        await self.deployment.redis_wipe()
        self.witness.wiped(loaded)

    async def fail_over(self, stale_s: float, kinds: tuple[str, ...] = ()) -> None:
        """Promote the replica, which has missed what was written for `stale_s`."""
        await self.witness.end()
        await self.deployment.failover(stale_s=stale_s, kinds=kinds)
        await self.witness.server_changed()

    async def fail_back(self, kinds: tuple[str, ...]) -> None:
        """Lead everybody, or only some kinds, to the old primary."""
        await self.witness.end()
        await self.deployment.fail_back(kinds)
        await self.witness.server_changed()

    async def rejoin(self) -> None:
        """Lead everybody to the primary, and let the other server follow it."""
        await self.witness.end()
        await self.deployment.rejoin()

    async def last(self, seconds: float) -> None:
        """Wait, at most until the run is over."""
        if seconds > 0:
            try:
                await asyncio.wait_for(self.over.wait(), seconds)
            except TimeoutError:
                return

    @asynccontextmanager
    async def wrong(self, links: list[str], toxic: Toxic) -> AsyncIterator[None]:
        """Something is wrong with lines, beside what is wrong with them already."""
        for link in links:
            self._wrong.setdefault(link, []).append(toxic)
            self._tell(link)
        try:
            yield
        finally:
            for link in links:
                self._wrong[link].remove(toxic)
                self._tell(link)

    def _tell(self, link: str) -> None:
        combined = Toxic()
        for toxic in self._wrong[link]:
            changed = {
                name: getattr(toxic, name)
                for name in toxic.__struct_fields__
                if getattr(toxic, name) != getattr(Toxic(), name)
            }
            combined = msgspec.structs.replace(combined, **changed)
        self.deployment.proxies.toxic(link, combined)
