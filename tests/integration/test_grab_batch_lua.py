"""grab_batch.lua on a real server: every row of RETURNS, and both sides of each limit."""

from dataclasses import dataclass, field
from time import time
from typing import Any

import pytest
from redis.asyncio import Redis

from couponsvc.gate.grabbing import OUTCOME_OF, SCRIPT, grab_command
from couponsvc.values import keys, wire
from couponsvc.values.grab import Grab
from couponsvc.values.note import holder_field, write_note
from couponsvc.values.outcome import Outcome

SHARD = 0
HOUR_MS = 3_600_000


@dataclass
class Stock:
    """A drop's state as the loader would publish it."""

    drop_no: int = 7
    epoch: int = 3
    quantity: int = 10
    available: int = 10
    pending: int = 0
    limit: int = 1
    opens_in_ms: int = -HOUR_MS
    closes_in_ms: int = HOUR_MS
    status: int = 0
    holders: dict[str, str] = field(default_factory=dict)

    async def publish(self, redis: Redis) -> "Stock":
        now_ms = int(time() * 1000)
        values = (
            self.available,
            self.pending,
            self.quantity - self.available - self.pending,
            self.quantity,
            self.limit,
            now_ms + self.opens_in_ms,
            now_ms + self.closes_in_ms,
            self.status,
            1,
        )
        state = [item for pair in zip(keys.STATE_FIELDS, values, strict=True) for item in pair]
        await redis.hset(keys.state_key(SHARD, self.drop_no, self.epoch), items=state)
        held = [item for pair in self.holders.items() for item in pair]
        if held:
            await redis.hset(keys.holders_key(SHARD, self.drop_no, self.epoch), items=held)
        await redis.hset(keys.shard_key(SHARD), keys.epoch_field(self.drop_no), self.epoch)
        return self

    async def figures(self, redis: Redis) -> tuple[int, int, int]:
        """`(available, pending, holders)`."""
        state = await redis.hmget(keys.state_key(SHARD, self.drop_no, self.epoch), ["available", "pending"])
        held = await redis.hlen(keys.holders_key(SHARD, self.drop_no, self.epoch))
        return int(state[0] or 0), int(state[1] or 0), held


def grab(person: str = "p1", number: str = "n1", drop_no: int = 7) -> Grab:
    return Grab(drop_no, f"1:{person}", number, "app", "370200")


async def decide(
    redis: Redis, *grabs: Grab, epoch: int = 3, backlog_max_count: int = 1000
) -> tuple[list[Outcome], list[bytes]]:
    drops: dict[tuple[int, int], int] = {}
    indexed = [wire.grab_row(drops.setdefault((g.drop_no, epoch), len(drops) + 1), g) for g in grabs]
    key_names, arguments = grab_command(
        SHARD, wire.encode_origin("origin", 5), list(drops), indexed, backlog_max_count
    )
    reply = await SCRIPT.run(redis, key_names, arguments)
    return [OUTCOME_OF[code] for code in reply[0]], reply[1:]


async def entries(redis: Redis) -> list[wire.Entry]:
    found: Any = await redis.xrange(keys.grants_key(SHARD))
    return [wire.decode_entry(entry_id, fields) for entry_id, fields in found]


COMMITTED = write_note("n1", 4, 1_790_000_000_000, "ABCDEFGHJKLMN")


@pytest.mark.parametrize(
    ("stock", "asked", "expected", "note"),
    [
        (Stock(), grab(), Outcome.GRANTED, None),
        (Stock(available=1), grab(), Outcome.GRANTED, None),
        (Stock(available=0), grab(), Outcome.SOLD_OUT, None),
        (Stock(available=0, pending=1), grab(), Outcome.SOLD_OUT_PENDING, None),
        (Stock(status=1), grab(), Outcome.PAUSED, None),
        (Stock(opens_in_ms=60_000), grab(), Outcome.NOT_STARTED, b"opens"),
        (Stock(closes_in_ms=-1), grab(), Outcome.ENDED, b"closes"),
        (Stock(status=2), grab(), Outcome.ENDED, b"closes"),
        (Stock(holders={"1:1:p1": "n1"}), grab(), Outcome.REPEATED_PENDING, None),
        (Stock(holders={"1:1:p1": COMMITTED}), grab(), Outcome.REPEATED, COMMITTED.encode()),
        (Stock(holders={"1:1:p1": COMMITTED}), grab(number="n2"), Outcome.PERSON_LIMIT, COMMITTED.encode()),
        (Stock(holders={"1:1:p1": COMMITTED}), grab(number="n"), Outcome.PERSON_LIMIT, COMMITTED.encode()),
        (Stock(holders={"1:1:p1": "n1"}), grab(number="n2"), Outcome.PERSON_LIMIT, b"n1"),
        (Stock(holders={"1:1:p1": COMMITTED}, limit=2), grab(number="n2"), Outcome.GRANTED, None),
        (Stock(holders={"2:1:p1": COMMITTED}, limit=2), grab(), Outcome.REPEATED, COMMITTED.encode()),
        (Stock(holders={"1:2:p1": COMMITTED}), grab(), Outcome.GRANTED, None),
        # precedence: a repeat is answered whatever became of the drop
        (
            Stock(holders={"1:1:p1": COMMITTED}, status=2, available=0),
            grab(),
            Outcome.REPEATED,
            COMMITTED.encode(),
        ),
        (Stock(holders={"1:1:p1": "n1"}, closes_in_ms=-1), grab(), Outcome.REPEATED_PENDING, None),
        (Stock(available=0, status=1), grab(), Outcome.PAUSED, None),
        (Stock(available=0, holders={"1:1:p1": "n1"}), grab(number="n2"), Outcome.PERSON_LIMIT, b"n1"),
    ],
)
async def test_first_match_wins(
    redis: Redis, stock: Stock, asked: Grab, expected: Outcome, note: bytes | None
) -> None:
    await stock.publish(redis)
    outcomes, notes = await decide(redis, asked)
    assert outcomes == [expected]
    if note in (b"opens", b"closes"):
        field_name = f"{note.decode()}_ms"
        stored = await redis.hget(keys.state_key(SHARD, 7, 3), field_name)
        assert notes == [stored]
    else:
        assert notes == ([] if note is None else [note])


async def test_a_denied_grab_leaves_nothing_behind(redis: Redis) -> None:
    await Stock(available=0).publish(redis)
    before = await redis.keys("*")
    await decide(redis, grab())
    assert sorted(await redis.keys("*")) == sorted(before)
    assert await redis.hget(keys.shard_key(SHARD), keys.BACKLOG_FIELD) is None


async def test_a_grant_moves_one_unit_and_reaches_the_stream_in_the_same_step(redis: Redis) -> None:
    stock = await Stock(limit=2, holders={"1:1:p1": "other"}, available=9, pending=1).publish(redis)
    before_ms = int(time() * 1000) - 1000
    await decide(redis, grab())
    assert await stock.figures(redis) == (8, 2, 2)
    (entry,) = await entries(redis)
    assert entry.origin == ("origin", 5)
    assert entry.drops == [(7, 3)]
    assert entry.grants == [wire.Grant(1, "1:p1", "n1", 2, 0, "app", "370200")]
    assert before_ms < entry.granted_ms < before_ms + 10_000
    assert await redis.hget(keys.shard_key(SHARD), keys.BACKLOG_FIELD) == b"1"
    assert await redis.hget(keys.holders_key(SHARD, 7, 3), holder_field(2, "1:p1")) == b"n1"


@pytest.mark.parametrize(("published", "asked"), [(3, 2), (3, 4), (None, 3)])
async def test_another_epoch_or_an_unloaded_drop_is_fenced(
    redis: Redis, published: int | None, asked: int
) -> None:
    if published is not None:
        await Stock(epoch=published).publish(redis)
    outcomes, _ = await decide(redis, grab(), epoch=asked)
    assert outcomes == [Outcome.FENCED]
    assert await entries(redis) == []


async def test_a_missing_state_is_not_zero_stock(redis: Redis) -> None:
    await Stock().publish(redis)
    await redis.delete(keys.state_key(SHARD, 7, 3))
    outcomes, _ = await decide(redis, grab())
    assert outcomes == [Outcome.FENCED]


async def test_a_batch_sees_its_own_grants(redis: Redis) -> None:
    stock = await Stock(available=2, quantity=2).publish(redis)
    outcomes, notes = await decide(
        redis,
        grab("p1", "n1"),
        grab("p1", "n1"),
        grab("p1", "n2"),
        grab("p2", "n3"),
        grab("p3", "n4"),
    )
    assert outcomes == [
        Outcome.GRANTED,
        Outcome.REPEATED_PENDING,
        Outcome.PERSON_LIMIT,
        Outcome.GRANTED,
        Outcome.SOLD_OUT_PENDING,
    ]
    assert notes == [b"n1"]
    assert await stock.figures(redis) == (0, 2, 2)
    assert len(await entries(redis)) == 1


async def test_one_batch_decides_many_drops_apart(redis: Redis) -> None:
    full = await Stock(drop_no=7).publish(redis)
    empty = await Stock(drop_no=8, available=0).publish(redis)
    outcomes, _ = await decide(
        redis, grab("p1", "a", 7), grab("p1", "b", 8), grab("p2", "c", 9), grab("p2", "d", 7)
    )
    assert outcomes == [Outcome.GRANTED, Outcome.SOLD_OUT, Outcome.FENCED, Outcome.GRANTED]
    assert await full.figures(redis) == (8, 2, 2)
    assert await empty.figures(redis) == (0, 0, 0)
    (entry,) = await entries(redis)
    assert [grant.place for grant in entry.grants] == [0, 3]


async def test_the_backlog_cap_refuses_before_stock_is_taken(redis: Redis) -> None:
    stock = await Stock().publish(redis)
    outcomes, _ = await decide(redis, grab("p1", "a"), grab("p2", "b"), grab("p3", "c"), backlog_max_count=2)
    assert outcomes == [Outcome.GRANTED, Outcome.GRANTED, Outcome.OVERLOADED]
    assert await stock.figures(redis) == (8, 2, 2)
    outcomes, _ = await decide(redis, grab("p3", "c"), backlog_max_count=2)
    assert outcomes == [Outcome.OVERLOADED]
    outcomes, _ = await decide(redis, grab("p3", "c"), backlog_max_count=3)
    assert outcomes == [Outcome.GRANTED]


async def test_a_full_batch_with_the_highest_person_limit_is_decided(redis: Redis) -> None:
    stock = await Stock(quantity=600, available=600, limit=16).publish(redis)
    outcomes, _ = await decide(redis, *(grab(f"p{n}", f"n{n}") for n in range(512)))
    assert outcomes == [Outcome.GRANTED] * 512
    assert await stock.figures(redis) == (88, 512, 512)


async def test_out_of_memory_refuses_before_anything_is_written(redis: Redis) -> None:
    stock = await Stock().publish(redis)
    await redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(Exception, match=r"OOM|memory"):
            await decide(redis, grab())
    finally:
        await redis.config_set("maxmemory", 0)
    assert await stock.figures(redis) == (10, 0, 0)
    assert await entries(redis) == []
