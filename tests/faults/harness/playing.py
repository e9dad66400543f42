"""Plays short schedules one after the other on one deployment, with a planted bug or without.

Between plays the servers are emptied; of the processes only those are started again that run another
source than before.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from couponsvc.reconcile.check import check, check_stream, render, stream_is_wrong
from couponsvc.support.postgres import open_pool
from couponsvc.support.redis_client import open_redis
from couponsvc.values import keys
from tests.faults.harness.acts import ACTS
from tests.faults.harness.checker import Report, judge
from tests.faults.harness.deployment import Deployment
from tests.faults.harness.final import SHARD, read_final
from tests.faults.harness.following import Following
from tests.faults.harness.members import ProcessMember
from tests.faults.harness.mutants import Mutant, plant
from tests.faults.harness.stage import Stage

READY_S: Final = 60.0
CHECK_PATIENCE_S: Final = 1.0
"""How long the drift of a broken service may take to go away: shorter than `couponsvc check` would wait."""
REST_S: Final = 3.0
"""The same for what the relay has not numbered, and what a reader of the feed has not got."""
_EMPTY: Final = """
TRUNCATE vouchers, outbox, events, deliveries, delivery_attempts, dead_letters, operations, drops CASCADE
"""


class Plays:
    """A deployment on which acts are played."""

    def __init__(self, deployment: Deployment, copies_dir: Path) -> None:
        self.deployment: Final = deployment
        self._copies_dir: Final = copies_dir
        """Where mutated sources are written, and stay until the deployment has ended."""
        self._plays: Final = itertools.count(1)
        self._sources: Final[dict[str, Path]] = {}

    async def play_correct(self, act: str) -> Report:
        """Play an act on the real source."""
        await self._run_sources({})
        return await self._play(act)

    async def play_mutant(self, mutant: Mutant) -> Report:
        """Play a mutant's act with its bug planted.

        Raises:
            DoesNotApply: the source has changed.
        """
        directory = self._copies_dir / mutant.name
        source = plant(mutant, directory)
        await self._run_sources(dict.fromkeys(mutant.kinds, source))
        return await self._play(mutant.act, mutant.schema, mutant.schema_again)

    async def _run_sources(self, sources: Mapping[str, Path]) -> None:
        """Let processes of some kinds run a mutated copy of the source, all others the real one."""
        deployment = self.deployment
        changed = {
            kind for kind in {*sources, *self._sources} if sources.get(kind) != self._sources.get(kind)
        }
        self._sources.clear()
        self._sources.update(sources)
        names = [name for kind in changed for name in deployment.members(kind)]
        for name in names:
            member = deployment._members[name]  # noqa: SLF001 - no other way to a member's environment
            assert isinstance(member, ProcessMember)
            source = sources.get(member.kind)
            member.own_environment = {} if source is None else {"PYTHONPATH": str(source)}
            await deployment.down(name)
        for name in names:
            await deployment.up(name)
        await deployment.until_ready(READY_S)

    async def _play(self, act: str, schema: str = "", schema_again: str = "") -> Report:
        """Play one act on new drops and judge it; nothing of it is left."""
        deployment = self.deployment
        stage = Stage(deployment, f"play-{next(self._plays)}")
        following = Following(deployment.url, deployment.keys, deployment.postgres_dsn)
        try:
            await self._until_drainers_read(stage)
            await following.start()
            if schema:
                await stage.sql(schema)
            await ACTS[act](stage)
            final = await read_final(deployment, list(stage.quantities), check=self._check, rest_s=REST_S)
            await following.catch_up(REST_S)
            final = final._replace(followed=(following.paged, following.streamed))
        finally:
            await following.stop()
            stage.close()
            await self._clean_up(stage)
            if schema_again:
                await stage.sql(schema_again)
        return judge(stage.history, final)

    async def _until_drainers_read(self, stage: Stage) -> None:
        """Wait until each has joined the group on the stream: they were just started, or it was emptied."""
        redis = open_redis(self.deployment.redis_url, max_connections=1)
        stream, wanted_count = keys.grants_key(SHARD), len(self.deployment.members("drain"))

        async def read() -> bool:
            if not await redis.exists(stream):
                return False
            groups: Any = await redis.xinfo_groups(stream)
            return any(group["consumers"] >= wanted_count for group in groups)

        try:
            assert await stage.until(read), "the drainers do not read"
        finally:
            await redis.aclose()

    async def _check(self, _environment: Mapping[str, str]) -> tuple[int, str]:
        """As `couponsvc check`, in this process and with less patience."""
        redis = open_redis(self.deployment.redis_url, max_connections=2)
        pool = await open_pool(self.deployment.postgres_dsn, max_size=2)
        try:
            checks = await check(pool, redis, patience_s=CHECK_PATIENCE_S)
            stream = await check_stream(redis, SHARD, patience_s=CHECK_PATIENCE_S)
        finally:
            pool.terminate()
            await redis.aclose()
        wrong = any(line.drift for line in checks) or stream_is_wrong(checks, stream)
        return int(wrong), render(checks, stream)

    async def _clean_up(self, stage: Stage) -> None:
        self.deployment.release_all()
        self.deployment.proxies.heal_all()
        for order in self.deployment.kill_points_dir.iterdir():
            order.unlink()
        await stage.sql(_EMPTY)
        await self.deployment.redis_wipe()
