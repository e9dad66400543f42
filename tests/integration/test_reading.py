"""Reading what stands and what is pending."""

import asyncio
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from couponsvc.ledger import reading
from couponsvc.ledger.commit import Committer
from couponsvc.ledger.drops import DropMark, load_drops, mark_drops
from couponsvc.ledger.reading import SCAN_PAGE_COUNT, PendingView
from couponsvc.settings import Settings
from couponsvc.support.redis_client import open_redis
from couponsvc.values import keys
from couponsvc.values.drop import Drop, DropStatus, VoucherTerms
from couponsvc.values.grab import Grab
from couponsvc.values.voucher import StandingVoucher
from couponsvc.values.wire import Confirmation
from tests.ledgers import SHARD, Scene, entry, grant


@pytest.fixture
async def scene(settings: Settings, pool: "asyncpg.Pool[asyncpg.Record]", redis: Redis) -> Scene:
    return Scene(settings, pool, redis)


async def issue(scene: Scene, drop: Drop, count: int, *, partner_no: int = 1) -> list[StandingVoucher]:
    """Vouchers p0…, under the numbers <drop>-<partner>-n0…"""
    prefix = f"{drop.drop_no}-{partner_no}-n"
    grants = [grant(f"p{i}", f"{prefix}{i}", place=i, partner_no=partner_no) for i in range(count)]
    committer = Committer(scene.pool, scene.unseal, 0)
    (settled,) = await committer.commit([entry("1-1", [(drop.drop_no, 1)], grants)])
    await committer.close()
    return [
        StandingVoucher(
            drop.drop_no, c.seq, partner_no, 1, c.issued_ms, f"p{i}", f"{prefix}{i}", c.code, "app", "370200"
        )
        for i, c in enumerate(map(Confirmation._make, settled.parts[0].confirmations))
    ]


async def test_vouchers_are_found_by_their_numbers_and_the_absent_are_absent(scene: Scene) -> None:
    one, other = await scene.add_drop("one"), await scene.add_drop("other")
    issued = [*await issue(scene, one, 3), *await issue(scene, other, 2, partner_no=2)]
    asked = [(v.partner_no, v.out_request_no) for v in issued]
    found = await reading.find_by_requests(scene.pool, [*asked, (1, "nothing"), (3, asked[0][1]), asked[0]])
    assert found == dict(zip(asked, issued, strict=True))
    assert await reading.find_by_requests(scene.pool, []) == {}


async def test_a_voucher_is_found_by_its_name(scene: Scene) -> None:
    drop = await scene.add_drop()
    issued = await issue(scene, drop, 3)
    assert await reading.find_voucher(scene.pool, drop.drop_no, 2) == issued[1]
    assert await reading.find_voucher(scene.pool, drop.drop_no, 4) is None


async def test_a_person_is_known_within_a_partner_only(scene: Scene) -> None:
    drop = await scene.add_drop()
    for name in ("bank-a", "bank-b"):
        await scene.pool.execute("INSERT INTO partners (partner_id, name) VALUES ($1, 'B')", name)
    mine, theirs = await issue(scene, drop, 2), await issue(scene, drop, 2, partner_no=2)
    assert await reading.find_by_person(scene.pool, drop.drop_no, "p1", 1, 10) == [mine[1]]
    assert await reading.find_by_person(scene.pool, drop.drop_no, "p1", None, 10) == [mine[1], theirs[1]]
    assert await reading.find_by_person(scene.pool, drop.drop_no, "p1", None, 1) == [mine[1]]
    assert await reading.find_by_person(scene.pool, drop.drop_no, "p9", 1, 10) == []


async def test_pages_follow_one_another_without_gap_or_overlap(scene: Scene) -> None:
    drop = await scene.add_drop()
    issued = await issue(scene, drop, 7)
    seen: list[StandingVoucher] = []
    while page := await reading.page(scene.pool, drop.drop_no, seen[-1].seq if seen else 0, 3):
        assert len(page) <= 3
        seen += page
    assert seen == issued


async def test_definitions_are_read_whole(scene: Scene) -> None:
    drop = await scene.add_drop(quantity=5, limit=2)
    await scene.pool.execute(
        "INSERT INTO partners (partner_id, name) VALUES ('bank-a', 'B'), ('bank-b', 'B')"
    )
    await scene.pool.execute("INSERT INTO drop_partners VALUES ($1, 1), ($1, 2)", drop.drop_no)
    await scene.pool.execute(
        "UPDATE drops SET opens_at = '2026-10-01T10:00:00.123+08:00', closes_at = '2026-10-01T12:30:00Z', "
        "status = 1, epoch = 4, version = 9"
    )
    expected = Drop(
        drop.drop_no, "drop-1", "pp", "tt", "", 0, 4, 9, DropStatus.PAUSED, 5, 2,
        1_790_820_000_123, 1_790_857_800_000, VoucherTerms(2_000, 6_000, 3_600_000), frozenset({1, 2}),
    )  # fmt: skip
    assert await load_drops(scene.pool, ["drop-1", "nowhere"]) == [expected]
    assert await load_drops(scene.pool, []) == []
    assert await mark_drops(scene.pool) == {"drop-1": DropMark.of(expected)}


async def test_a_mark_moves_with_whatever_changes_of_a_definition(scene: Scene) -> None:
    assert await mark_drops(scene.pool) == {}
    await scene.add_drop()
    assert await mark_drops(scene.pool) == {"drop-1": DropMark(1, 1, "")}
    await scene.pool.execute("UPDATE drops SET epoch = 2, version = 3")
    await scene.pool.execute("UPDATE programs SET region = '370200'")
    assert await mark_drops(scene.pool) == {"drop-1": DropMark(2, 3, "370200")}


async def test_a_grant_is_pending_until_it_leaves_the_stream(scene: Scene) -> None:
    drop = await scene.add_drop()
    view = PendingView(scene.redis, SHARD)
    assert not await view.is_pending(1, "n1"), "there is no stream yet"
    await scene.grab(Grab(drop.drop_no, "1:p1", "n1", "", ""), Grab(drop.drop_no, "2:p1", "n2", "", ""))
    assert await view.is_pending(1, "n1")
    assert not await view.is_pending(2, "n1")
    assert await view.holds(drop.drop_no, 2, "n2")
    assert not await view.holds(drop.drop_no + 1, 2, "n2")
    await scene.redis.xtrim(keys.grants_key(SHARD), maxlen=0)
    assert not await view.is_pending(1, "n1")


async def test_a_long_stream_is_read_to_its_end(scene: Scene) -> None:
    drop = await scene.add_drop(quantity=1_000)
    for batch in range(SCAN_PAGE_COUNT * 2 + 1):
        await scene.grab(Grab(drop.drop_no, f"1:p{batch}", f"n{batch}", "", ""))
    view = PendingView(scene.redis, SHARD)
    answers = await asyncio.gather(
        *(view.is_pending(1, f"n{batch}") for batch in (0, SCAN_PAGE_COUNT, SCAN_PAGE_COUNT * 2, 999))
    )
    assert answers == [True, True, True, False]


async def test_what_cannot_be_read_hides_nothing_behind_it(scene: Scene) -> None:
    drop = await scene.add_drop()
    fields: dict[Any, Any] = {"v": "99"}
    await scene.redis.xadd(keys.grants_key(SHARD), fields)
    await scene.grab(Grab(drop.drop_no, "1:p1", "n1", "", ""))
    assert await PendingView(scene.redis, SHARD).is_pending(1, "n1")


async def test_callers_share_scans(scene: Scene) -> None:
    """However many ask at once: those who asked first share one scan, the others the next."""
    drop = await scene.add_drop()
    await scene.grab(Grab(drop.drop_no, "1:p1", "n1", "", ""))
    view = PendingView(scene.redis, SHARD)
    before = await scans(scene.redis)
    first = [asyncio.create_task(view.is_pending(1, "n1")) for _ in range(50)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    later = [asyncio.create_task(view.is_pending(1, f"n{i}")) for i in range(50)]
    answers = await asyncio.gather(*first, *later)
    assert answers == [True] * 50 + [i == 1 for i in range(50)]
    assert await scans(scene.redis) - before == 2


async def scans(redis: Redis) -> int:
    statistics: Any = await redis.info("commandstats")
    return int(statistics.get("cmdstat_xrange", {}).get("calls", 0))


async def test_who_asks_during_a_scan_is_answered_by_one_that_saw_the_present(scene: Scene) -> None:
    drop = await scene.add_drop()
    view = PendingView(scene.redis, SHARD)
    early = asyncio.create_task(view.is_pending(1, "n1"))
    await asyncio.sleep(0)
    await scene.grab(Grab(drop.drop_no, "1:p1", "n1", "", ""))
    assert await view.is_pending(1, "n1")
    await early


async def test_a_caller_that_goes_away_does_not_spoil_it_for_the_others(scene: Scene) -> None:
    drop = await scene.add_drop()
    await scene.grab(Grab(drop.drop_no, "1:p1", "n1", "", ""))
    view = PendingView(scene.redis, SHARD)
    leaving = asyncio.create_task(view.is_pending(1, "n1"))
    staying = asyncio.create_task(view.is_pending(1, "n1"))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying
    assert await view.is_pending(1, "n1")


async def test_when_redis_is_away_everyone_hears_of_it_and_later_ones_do_not(
    scene: Scene,
) -> None:
    nowhere = open_redis("redis://127.0.0.1:1/0")
    view = PendingView(nowhere, SHARD)
    answers = await asyncio.gather(*(view.is_pending(1, "n1") for _ in range(5)), return_exceptions=True)
    assert all(isinstance(answer, RedisError) for answer in answers)
    await nowhere.aclose()
    view._redis = scene.redis  # noqa: SLF001 - as if it had come back
    assert not await view.is_pending(1, "n1")
