"""acknowledge.lua on a real server: what each verdict leaves in Redis, exactly once."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from couponsvc.ledger.acknowledge import ACKNOWLEDGE, Report, acknowledge_unread
from couponsvc.ledger.grouping import Settled, SettledPart
from couponsvc.support.redis_client import make_connection
from couponsvc.support.resp import RespLine, open_line
from couponsvc.values import keys, wire
from couponsvc.values.outcome import Verdict
from couponsvc.values.wire import Confirmation, DropEpoch, Entry, Grant
from tests.ledgers import SHARD, entry, grant, listening

DROP_NO, EPOCH = 7, 3
STATE = keys.state_key(SHARD, DROP_NO, EPOCH)
HOLDERS = keys.holders_key(SHARD, DROP_NO, EPOCH)
GRANTS = keys.grants_key(SHARD)
ACK = keys.shard_key(SHARD)


def confirmation(g: Grant, verdict: Verdict, seq: int = 0, number: str = "") -> Confirmation:
    return Confirmation(
        g.place, verdict, seq, 1000 if seq else 0, "CODE" if seq else "", number or g.out_request_no
    )


class Shelf:
    """Entries on the stream with their grants pending, as the gate leaves them."""

    def __init__(self, redis: Redis, line: RespLine) -> None:
        self.redis = redis
        self.line = line
        self.available = 90

    async def load(self, *, epoch: int = EPOCH) -> None:
        await self.redis.hset(ACK, mapping={keys.epoch_field(DROP_NO): epoch, keys.BACKLOG_FIELD: 0})
        await self.redis.hset(STATE, mapping={"available": 90, "pending": 0, "issued": 10, "quantity": 100})
        await self.redis.xgroup_create(GRANTS, keys.GROUP, id="0", mkstream=True)

    async def put(self, *grants: Grant) -> Entry:
        """One entry, delivered to a consumer."""
        await self.redis.hset(ACK, keys.BACKLOG_FIELD, await self.field(ACK, "backlog") + len(grants))
        pending = [text for g in grants for text in (f"{g.ordinal}:{g.holder}", g.out_request_no)]
        await self.redis.hset(HOLDERS, items=pending)
        await self.redis.hincrby(STATE, "available", -len(grants))
        await self.redis.hincrby(STATE, "pending", len(grants))
        entry_id: Any = await self.redis.xadd(GRANTS, {"v": "1"})
        await self.redis.xreadgroup(keys.GROUP, "me", {GRANTS: ">"})
        return entry(entry_id.decode(), [(DROP_NO, EPOCH)], grants)

    async def field(self, key: str, name: str) -> int:
        return int(await self.redis.hget(key, name) or 0)

    async def figures(self) -> tuple[int, int, int]:
        """`(available, pending, issued)`."""
        return (
            await self.field(STATE, "available"),
            await self.field(STATE, "pending"),
            await self.field(STATE, "issued"),
        )

    async def note(self, field: str) -> str | None:
        found: Any = await self.redis.hget(HOLDERS, field)
        return found.decode() if found is not None else None

    async def acknowledge(self, settled: Settled) -> int:
        return await Report(self.line, SHARD, [settled]).acknowledged()


def settled(e: Entry, *confirmations: Confirmation, mended: frozenset[int] = frozenset()) -> Settled:
    return Settled(e, [SettledPart(DropEpoch(DROP_NO, EPOCH), e.grants, confirmations, mended)])


@pytest.fixture
async def line(redis_url: str) -> AsyncIterator[RespLine]:
    line = await open_line(make_connection(redis_url), timeout_s=5.0)
    yield line
    line.close()


@pytest.fixture
async def shelf(redis: Redis, line: RespLine) -> Shelf:
    shelf = Shelf(redis, line)
    await shelf.load()
    return shelf


NOTE = "n1 11 1000 CODE"
TABLE: list[tuple[str, Verdict, bool, tuple[int, int, int], str | None]] = [
    ("committed: the note is written, the unit is issued", Verdict.COMMITTED, False, (89, 0, 11), NOTE),
    ("held at this ordinal: as if it had been known", Verdict.HELD, True, (89, 0, 11), "old 11 1000 CODE"),
    ("held elsewhere: a phantom", Verdict.HELD, False, (89, 0, 10), None),
    ("mismatch: the unit goes back", Verdict.MISMATCH, False, (90, 0, 10), None),
    ("exceeded: a phantom", Verdict.EXCEEDED, False, (89, 0, 10), None),
    ("stale: a phantom", Verdict.STALE, False, (89, 0, 10), None),
]


@pytest.mark.parametrize(
    ("verdict", "mended", "figures", "note"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
async def test_each_verdict(
    shelf: Shelf,
    verdict: Verdict,
    mended: bool,  # noqa: FBT001 - a column of the table
    figures: tuple[int, int, int],
    note: str | None,
) -> None:
    e = await shelf.put(grant())
    told = confirmation(
        e.grants[0],
        verdict,
        seq=11 if verdict in {Verdict.COMMITTED, Verdict.HELD} else 0,
        number="old" if verdict is Verdict.HELD else "",
    )
    assert await shelf.acknowledge(settled(e, told, mended=frozenset({0} if mended else ()))) == 1
    assert await shelf.figures() == figures
    assert await shelf.note("1:1:p1") == note
    assert await shelf.redis.xlen(GRANTS) == 0
    assert await shelf.field(ACK, "backlog") == 0


async def test_a_second_acknowledgement_does_nothing(shelf: Shelf) -> None:
    e = await shelf.put(grant("p1", "n1"), grant("p2", "n2", place=1))
    report = settled(
        e, confirmation(e.grants[0], Verdict.COMMITTED, 11), confirmation(e.grants[1], Verdict.MISMATCH)
    )
    assert await shelf.acknowledge(report) == 1
    before = await shelf.figures(), await shelf.redis.hgetall(HOLDERS)
    assert await shelf.acknowledge(report) == 0
    assert (
        (await shelf.figures(), await shelf.redis.hgetall(HOLDERS))
        == before
        == (
            (89, 0, 11),
            {b"1:1:p1": b"n1 11 1000 CODE"},
        )
    )
    assert await shelf.field(ACK, "backlog") == 0


async def test_an_entry_that_was_never_delivered_is_not_acknowledged(shelf: Shelf) -> None:
    entry_id: Any = await shelf.redis.xadd(GRANTS, {"v": "1"})
    e = entry(entry_id.decode(), [(DROP_NO, EPOCH)], [grant()])
    assert await shelf.acknowledge(settled(e, confirmation(e.grants[0], Verdict.COMMITTED, 11))) == 0
    assert await shelf.redis.xlen(GRANTS) == 1
    assert await shelf.figures() == (90, 0, 10)


@pytest.mark.parametrize("published", [EPOCH - 1, EPOCH + 1, None])
async def test_under_another_epoch_only_the_stream_and_the_backlog_change(
    shelf: Shelf, published: int | None
) -> None:
    e = await shelf.put(grant())
    if published is None:
        await shelf.redis.hdel(ACK, keys.epoch_field(DROP_NO))
    else:
        await shelf.redis.hset(ACK, keys.epoch_field(DROP_NO), published)
    assert await shelf.acknowledge(settled(e, confirmation(e.grants[0], Verdict.MISMATCH))) == 1
    assert await shelf.figures() == (89, 1, 10)
    assert await shelf.note("1:1:p1") == "n1"
    assert await shelf.field(ACK, "backlog") == 0
    assert await shelf.redis.xlen(GRANTS) == 0


async def test_state_that_was_lost_is_not_made_up(shelf: Shelf) -> None:
    e = await shelf.put(grant())
    await shelf.redis.delete(STATE, HOLDERS)
    assert await shelf.acknowledge(settled(e, confirmation(e.grants[0], Verdict.COMMITTED, 11))) == 1
    assert await shelf.redis.exists(STATE, HOLDERS) == 0


@pytest.mark.parametrize("verdict", [Verdict.MISMATCH, Verdict.STALE])
async def test_a_field_that_holds_another_number_is_left_alone(shelf: Shelf, verdict: Verdict) -> None:
    e = await shelf.put(grant())
    await shelf.redis.hset(HOLDERS, "1:1:p1", "n9 4 1000 OTHER")
    await shelf.acknowledge(settled(e, confirmation(e.grants[0], verdict)))
    assert await shelf.note("1:1:p1") == "n9 4 1000 OTHER"


async def test_a_wiped_server_makes_nothing_up(redis: Redis, line: RespLine) -> None:
    e = entry("1-1", [(DROP_NO, EPOCH)], [grant()])
    report = settled(e, confirmation(e.grants[0], Verdict.COMMITTED, 11))
    assert await Report(line, SHARD, [report]).acknowledged() == 0
    assert await redis.keys("*") == []


async def test_more_grants_than_one_command_takes(shelf: Shelf) -> None:
    grants = [grant(f"p{i}", f"n{i}", place=i) for i in range(4_100)]
    await shelf.redis.hset(STATE, "available", 5_000)
    e = await shelf.put(*grants)
    told = [confirmation(g, Verdict.COMMITTED, 11 + i) for i, g in enumerate(grants)]
    assert await shelf.acknowledge(settled(e, *told)) == 1
    assert await shelf.figures() == (900, 0, 4_110)
    assert await shelf.note("1:1:p4099") == "n4099 4110 1000 CODE"


async def test_several_entries_and_drops_in_one_call(shelf: Shelf) -> None:
    other = DropEpoch(8, 1)
    await shelf.redis.hset(ACK, keys.epoch_field(8), 1)
    await shelf.redis.hset(keys.state_key(SHARD, 8, 1), mapping={"available": 5, "pending": 1, "issued": 0})
    one, two = await shelf.put(grant("p1", "n1")), await shelf.put(grant("p2", "n2"), grant("p3", "n3"))
    report = [
        settled(one, confirmation(one.grants[0], Verdict.COMMITTED, 11)),
        Settled(
            two,
            [
                SettledPart(
                    DropEpoch(DROP_NO, EPOCH),
                    two.grants[:1],
                    [confirmation(two.grants[0], Verdict.COMMITTED, 12)],
                    frozenset(),
                ),
                SettledPart(
                    other, two.grants[1:], [confirmation(two.grants[1], Verdict.MISMATCH)], frozenset()
                ),
            ],
        ),
    ]
    assert await Report(shelf.line, SHARD, report).acknowledged() == 2
    assert await shelf.field(STATE, "issued") == 12
    assert await shelf.field(keys.state_key(SHARD, 8, 1), "available") == 6
    assert await shelf.field(ACK, "backlog") == 0


async def test_of_several_entries_only_those_not_acknowledged_before_count(shelf: Shelf) -> None:
    """As after a take-over that raced: the fields of the others must not be written again."""
    entries = [await shelf.put(grant(f"p{i}", f"n{i}"), grant(f"q{i}", f"m{i}")) for i in range(5)]
    reports = [
        settled(
            e,
            confirmation(e.grants[0], Verdict.COMMITTED, 11 + i),
            confirmation(e.grants[1], Verdict.MISMATCH),
        )
        for i, e in enumerate(entries)
    ]
    for place in (1, 2):
        assert await shelf.acknowledge(reports[place]) == 1
        await shelf.redis.hset(
            HOLDERS, items=[f"1:1:p{place}", "changed since", f"1:1:q{place}", f"m{place}"]
        )
    assert await Report(shelf.line, SHARD, reports).acknowledged() == 3
    assert await shelf.figures() == (85, 0, 15)
    assert [await shelf.note(f"1:1:p{i}") for i in range(5)] == [
        "n0 11 1000 CODE", "changed since", "changed since", "n3 14 1000 CODE", "n4 15 1000 CODE",
    ]  # fmt: skip
    assert [await shelf.note(f"1:1:q{i}") for i in range(5)] == [None, "m1", "m2", None, None]
    assert await shelf.field(ACK, "backlog") == 0
    assert await shelf.redis.xlen(GRANTS) == 0


async def test_it_works_when_the_memory_is_full(shelf: Shelf) -> None:
    e = await shelf.put(grant())
    await shelf.redis.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(ResponseError, match=r"OOM|command not allowed"):
            await shelf.redis.hset(STATE, "available", 1)
        report = settled(e, confirmation(e.grants[0], Verdict.MISMATCH))
        assert await shelf.acknowledge(report) == 1
    finally:
        await shelf.redis.config_set("maxmemory", "0")
    assert await shelf.figures() == (90, 0, 10)


async def test_a_server_that_lost_its_scripts_is_served_all_the_same(shelf: Shelf) -> None:
    e = await shelf.put(grant())
    await shelf.redis.script_flush()
    assert await shelf.acknowledge(settled(e, confirmation(e.grants[0], Verdict.COMMITTED, 11))) == 1
    assert await shelf.figures() == (89, 0, 11)


async def test_an_unread_entry_leaves_the_stream_and_touches_no_stock(shelf: Shelf) -> None:
    e = await shelf.put(grant())
    assert await acknowledge_unread(shelf.redis, SHARD, [e.entry_id, "1-1"]) == 1
    assert await shelf.figures() == (89, 1, 10)
    assert await shelf.redis.xlen(GRANTS) == 0


async def test_confirmations_reach_the_waiting_process_as_they_were_sent(shelf: Shelf) -> None:
    e = await shelf.put(grant("p1", "n1"), grant("p2", "n2", place=1))
    told = [confirmation(e.grants[0], Verdict.COMMITTED, 11), confirmation(e.grants[1], Verdict.EXCEEDED)]
    async with listening(shelf.redis) as heard:
        await shelf.acknowledge(settled(e, *told))
        while not heard:
            await asyncio.sleep(0.01)
    assert heard == {1: told}
    assert wire.decode_confirmations(wire.encode_confirmations(1, told)).confirmations == told


def test_the_script_may_run_out_of_memory_and_says_so() -> None:
    assert ACKNOWLEDGE.source.startswith("#!lua flags=allow-oom\n")
