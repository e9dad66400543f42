"""Grants are committed only from the server that is used: who holds those of a lost one drops them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

import asyncpg
import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from couponsvc import limits
from couponsvc.ledger.commit import Committer, UncheckedServer
from couponsvc.ledger.drainer import Drainer
from couponsvc.ledger.inbox import Inbox
from couponsvc.ledger.stream import GrantStream, RawEntry
from couponsvc.reconcile.identity import begin_check, end_check, read_blessing, read_identity
from couponsvc.reconcile.reconciler import Reconciler
from couponsvc.settings import Settings
from couponsvc.support.redis_client import make_connection
from couponsvc.support.resp import LineLost, RespLine, open_line
from couponsvc.support.server_identity import ServerIdentity
from couponsvc.support.sql import Queries
from couponsvc.values import keys
from couponsvc.values.drop import Drop
from couponsvc.values.grab import Grab
from couponsvc.values.wire import Entry
from tests.ledgers import SHARD, Scene, entry, grant

BLESSED = ServerIdentity("blessed", "its data")
CHECKING = ServerIdentity("checking", "its data")
SAME_PROCESS = ServerIdentity("blessed", "other data")
BLESS = "INSERT INTO blessings (shard, run_id, replication_id) VALUES ($1, $2, $3)"


@pytest.fixture
async def scene(settings: Settings, pool: "asyncpg.Pool[asyncpg.Record]", redis: Redis) -> Scene:
    return Scene(settings, pool, redis)


@pytest.fixture
async def committer(scene: Scene) -> AsyncIterator[Committer]:
    made = Committer(scene.pool, scene.unseal, SHARD)
    yield made
    await made.close()


async def voucher_count(scene: Scene) -> int:
    return int(await scene.pool.fetchval("SELECT count(*) FROM vouchers"))


def of_one_drop(drops: Sequence[Drop], person: str) -> list[Entry]:
    return [entry("1-1", [(drops[0].drop_no, 1)], [grant(person, f"n-{person}")])]


def of_two_drops(drops: Sequence[Drop], person: str) -> list[Entry]:
    grants = [grant(person, f"{drop.drop_id}-{person}", drop_index=i) for i, drop in enumerate(drops, 1)]
    return [entry("1-1", [(drop.drop_no, 1) for drop in drops], grants)]


def with_a_repetition(drops: Sequence[Drop], person: str) -> list[Entry]:
    """What only the slow path can rule on."""
    return [*of_one_drop(drops, person), *of_one_drop(drops, person)]


@pytest.mark.parametrize("shape", [of_one_drop, of_two_drops, with_a_repetition])
async def test_only_the_server_that_is_used_is_committed_from(
    scene: Scene, committer: Committer, shape: Callable[[Sequence[Drop], str], list[Entry]]
) -> None:
    drops = [await scene.add_drop("drop-1"), await scene.add_drop("drop-2")]

    async def issued_from(server: ServerIdentity, person: str) -> int:
        before = await voucher_count(scene)
        with contextlib.suppress(UncheckedServer):
            await committer.commit(shape(drops, person), server)
        return await voucher_count(scene) - before

    assert await issued_from(CHECKING, "first")  # nobody was ever blessed: nobody was ever asked
    await scene.pool.execute(BLESS, SHARD, *BLESSED)
    assert await issued_from(BLESSED, "a")
    assert not await issued_from(CHECKING, "b")
    assert not await issued_from(SAME_PROCESS, "c")
    assert await begin_check(scene.pool, SHARD, CHECKING, BLESSED)
    assert not await issued_from(BLESSED, "d")
    assert await issued_from(CHECKING, "e")


async def test_no_gate_decides_on_the_old_server_while_another_one_is_checked(scene: Scene) -> None:
    async def read() -> ServerIdentity | None:
        row = await scene.pool.fetchrow(Queries("couponsvc.api", "blessing")["read_blessing"], SHARD)
        return ServerIdentity(*row) if row else None

    await scene.pool.execute(BLESS, SHARD, *BLESSED)
    assert await read() == BLESSED
    await begin_check(scene.pool, SHARD, CHECKING, BLESSED)
    assert await read() is None
    await end_check(scene.pool, SHARD)
    assert await read() == BLESSED


async def test_a_check_begins_when_the_commits_under_way_have_ended(
    scene: Scene, committer: Committer
) -> None:
    drop = await scene.add_drop()
    await scene.pool.execute(BLESS, SHARD, *BLESSED)
    async with scene.pool.acquire() as holding, holding.transaction():
        await holding.execute("SELECT 1 FROM drops FOR UPDATE")
        committing = asyncio.create_task(committer.commit(of_one_drop([drop], "a"), BLESSED))
        while not await scene.pool.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.01)
        beginning = asyncio.create_task(begin_check(scene.pool, SHARD, CHECKING, BLESSED))
        await asyncio.sleep(0.1)
        assert not beginning.done()
    async with asyncio.timeout(5):
        await committing
        assert await beginning
    assert await voucher_count(scene) == 1


async def test_grants_of_a_server_that_was_lost_are_never_committed_once_another_is_checked(
    scene: Scene, committer: Committer, redis: Redis
) -> None:
    # Without the fence Postgres moved under the examination: a server was blessed that knew nothing of a
    # voucher, and refused its number while the drop was paused.
    drop = await scene.add_drop()
    lost = ServerIdentity("lost", "its data")
    await scene.pool.execute(BLESS, SHARD, *lost)
    in_hand = of_one_drop([drop], "a")
    reconciler = await Reconciler.open(scene.settings)
    try:
        assert (await reconciler.run_once()).blessed
        assert await read_blessing(scene.pool, SHARD) == await read_identity(redis)
        with pytest.raises(UncheckedServer):
            await committer.commit(in_hand, lost)
        assert await voucher_count(scene) == 0
    finally:
        await reconciler.close()


async def test_the_blessed_server_that_answers_again_ends_the_check(
    scene: Scene, committer: Committer, redis: Redis
) -> None:
    drop = await scene.add_drop()
    reconciler = await Reconciler.open(scene.settings)
    try:
        await reconciler.run_once()
        here = await read_identity(redis)
        assert await begin_check(scene.pool, SHARD, CHECKING, here)
        with pytest.raises(UncheckedServer):
            await committer.commit(of_one_drop([drop], "a"), here)
        await reconciler.run_once()
        await committer.commit(of_one_drop([drop], "a"), here)
    finally:
        await reconciler.close()


async def test_a_drainer_waits_for_its_server_to_be_checked_and_loses_nothing(scene: Scene) -> None:
    drop = await scene.add_drop()
    await scene.pool.execute(BLESS, SHARD, *BLESSED)
    await scene.grab(Grab(drop.drop_no, "1:p", "n", "app", "370200"))
    drainer = await Drainer.open(scene.settings)
    try:
        for _ in range(2):
            with pytest.raises(UncheckedServer):
                await drainer.run_once()
        await begin_check(scene.pool, SHARD, await read_identity(scene.redis), BLESSED)
        assert (await drainer.run_once()).committed == 1
    finally:
        await drainer.close()
    await scene.check_drained(drop)


async def test_entries_that_may_be_of_two_servers_are_not_taken(scene: Scene) -> None:
    class Interrupted(GrantStream):
        """Loses its line after each read, so that the next one goes over another line."""

        async def read_new(self, count: int, block_ms: int | None) -> list[RawEntry]:
            entries = await super().read_new(count, block_ms)
            self.close()
            return entries

    async def connect() -> RespLine:
        return await open_line(make_connection(scene.settings.redis_url), timeout_s=5.0)

    drop = await scene.add_drop(quantity=2 * limits.DRAIN_READ_COUNT)
    for number in range(limits.DRAIN_READ_COUNT + 1):
        await scene.grab(Grab(drop.drop_no, f"1:p{number}", f"n{number}", "app", "370200"))
    stream = Interrupted(connect, keys.grants_key(SHARD), keys.GROUP, "me")
    inbox = Inbox(stream, limits.TAKE_OVER_IDLE_MS)
    with pytest.raises(LineLost, match="midst"):
        await inbox.read(10)
    inbox.recover()
    own = [len((await inbox.read(10)).entries) for _ in range(2)]
    assert own == [limits.DRAIN_READ_COUNT, 1]
    stream.close()


async def test_a_line_to_a_server_that_does_not_say_who_it_is_is_closed(scene: Scene, redis: Redis) -> None:
    await redis.execute_command("ACL", "SETUSER", "mute", "on", ">mute", "~*", "+@all", "-info")  # type: ignore[no-untyped-call]
    try:
        url = scene.settings.redis_url
        address = url.rpartition("@")[2].removeprefix("redis://")

        async def connect() -> RespLine:
            return await open_line(make_connection(f"redis://mute:mute@{address}"), timeout_s=5.0)

        stream = GrantStream(connect, keys.grants_key(SHARD), keys.GROUP, "me")
        with pytest.raises(ResponseError, match="NOPERM"):
            await stream.line()
        async with asyncio.timeout(5):
            while any(client["user"] == "mute" for client in await redis.client_list()):
                await asyncio.sleep(0.01)
    finally:
        await redis.execute_command("ACL", "DELUSER", "mute")  # type: ignore[no-untyped-call]
