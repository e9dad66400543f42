"""Subscriptions and asking for events again, on a real ledger: who may have what, and what is queued."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from couponsvc import limits
from couponsvc.outbox import redelivery, subscriptions
from couponsvc.outbox.partitions import tend_partitions
from couponsvc.outbox.sequencing import Sequencer
from couponsvc.outbox.subscriptions import SECRET_PURPOSE, Subscription
from couponsvc.support.sealing import CannotOpen, MasterKey
from couponsvc.support.webhook_signature import secret_bytes
from couponsvc.values.event import subscription_id
from tests.conftest import MASTER_KEY
from tests.integration.scene import issue, make_drop

Pool = asyncpg.Pool
NOW = datetime(2026, 10, 1, 2, 0, tzinfo=UTC)
KEY = MasterKey.from_base64(MASTER_KEY)
URL = "https://bank-a.example/hook"
ISSUED = "couponsvc.voucher.issued.v1"
PAUSED = "couponsvc.drop.paused.v1"
A, B = 1, 2


@pytest.fixture(autouse=True)
async def _scene(pool: "Pool[asyncpg.Record]") -> None:
    await tend_partitions(pool, NOW, events_kept_days=0, attempts_kept_days=30)
    await make_drop(pool, "drop-a", quantity=1000)
    await pool.execute("INSERT INTO partners (partner_id, name) VALUES ('bank-b', 'Bank B')")


async def subscribe(
    pool: "Pool[asyncpg.Record]",
    *types: str,
    url: str = URL,
    partner_no: int = A,
    drop_ids: Sequence[str] | None = None,
) -> Subscription:
    made, _ = await subscriptions.create(pool, KEY, partner_no, url, types or (ISSUED,), drop_ids)
    return made


async def write_events(
    pool: "Pool[asyncpg.Record]", count: int, *, partner_no: int = A, kind: str = "voucher.issued"
) -> list[int]:
    """Events as a relay has numbered them, one a minute from NOW on; nothing is queued for them."""
    first = await pool.fetchval("SELECT coalesce(max(event_no), 0) FROM events") + 1
    await pool.execute(
        "INSERT INTO events (event_no, partner_no, drop_no, sequence, type, occurred_at)"
        " SELECT n, $2, 1, n, $3, $4::timestamptz + make_interval(mins => (n - $1)::int)"
        " FROM generate_series($1::bigint, $1 + $5 - 1) n",
        first,
        partner_no,
        kind,
        NOW,
        count,
    )
    return list(range(first, first + count))


async def queue(pool: "Pool[asyncpg.Record]", subscription: Subscription) -> dict[int, dict[str, Any]]:
    rows = await pool.fetch(
        "SELECT * FROM deliveries WHERE subscription_no = $1 ORDER BY event_no", subscription.subscription_no
    )
    return {row["event_no"]: dict(row) for row in rows}


async def sealed(pool: "Pool[asyncpg.Record]", subscription: Subscription) -> asyncpg.Record:
    row = await pool.fetchrow(
        "SELECT sealed_secret, previous_sealed_secret, previous_until FROM subscriptions"
        " WHERE subscription_no = $1",
        subscription.subscription_no,
    )
    assert row is not None
    return row


def opened(secret: bytes, subscription: Subscription) -> str:
    return KEY.open(secret, SECRET_PURPOSE, subscription_id(subscription.subscription_no)).decode()


async def test_a_secret_is_shown_once_and_sealed_for_its_subscription(pool: "Pool[asyncpg.Record]") -> None:
    made, secret = await subscriptions.create(pool, KEY, A, URL, [PAUSED, ISSUED], None)
    other = await subscribe(pool, PAUSED)
    assert len(secret_bytes(secret)) == 32
    assert (made.types, made.drop_ids, made.url) == ((PAUSED, ISSUED), None, URL)
    row = await sealed(pool, made)
    assert opened(row["sealed_secret"], made) == secret
    with pytest.raises(CannotOpen):
        opened(row["sealed_secret"], other)
    found = await subscriptions.find(pool, A, made.subscription_no)
    assert found == made
    assert secret not in repr(found)
    assert await subscriptions.list_live(pool, A) == [made, other]


async def test_what_is_another_partners_is_not_there(pool: "Pool[asyncpg.Record]") -> None:
    number = (await subscribe(pool)).subscription_no
    assert await subscriptions.find(pool, B, number) is None
    assert await subscriptions.list_live(pool, B) == []
    assert await subscriptions.rotate(pool, KEY, B, number, NOW) is None
    assert not await subscriptions.request_test(pool, B, number)
    assert not await subscriptions.delete(pool, B, number, NOW)
    with pytest.raises(redelivery.SubscriptionUnknown):
        await redelivery.redeliver(pool, B, number, NOW, parked=True)
    assert await subscriptions.find(pool, A, number) is not None


async def test_drops_are_named_that_the_partner_sees(pool: "Pool[asyncpg.Record]") -> None:
    await make_drop(pool, "drop-b")
    made = await subscribe(pool, drop_ids=["drop-b", "drop-a"])
    assert made.drop_ids == ("drop-a", "drop-b")
    with pytest.raises(subscriptions.UnknownDrop, match="drop-x"):
        await subscribe(pool, drop_ids=["drop-a", "drop-x"])
    with pytest.raises(subscriptions.UnknownDrop, match="drop-a"):
        await subscribe(pool, partner_no=B, drop_ids=["drop-a"])


async def test_saying_the_same_twice_does_not_double_deliveries(pool: "Pool[asyncpg.Record]") -> None:
    made = await subscribe(pool, ISSUED, PAUSED, drop_ids=["drop-a"])
    with pytest.raises(subscriptions.AlreadySubscribed) as refusal:
        await subscribe(pool, PAUSED, ISSUED, drop_ids=["drop-a"])
    assert refusal.value.subscription_no == made.subscription_no
    for other in (
        await subscribe(pool, ISSUED, PAUSED),
        await subscribe(pool, ISSUED, drop_ids=["drop-a"]),
        await subscribe(pool, ISSUED, PAUSED, drop_ids=["drop-a"], url=URL + "2"),
    ):
        assert other.subscription_no != made.subscription_no
    await pool.execute("UPDATE subscriptions SET disabled_at = now() WHERE subscription_no = 1")
    await subscribe(pool, ISSUED, PAUSED, drop_ids=["drop-a"])


async def test_a_partner_has_so_many_subscriptions_and_no_more_also_at_once(
    pool: "Pool[asyncpg.Record]",
) -> None:
    most = limits.SUBSCRIPTIONS_PER_PARTNER_MAX_COUNT
    made = await asyncio.gather(
        *(subscribe(pool, url=f"{URL}{n}") for n in range(most + 4)), return_exceptions=True
    )
    assert sum(isinstance(one, Subscription) for one in made) == most
    assert sum(isinstance(one, subscriptions.TooMany) for one in made) == 4
    await subscribe(pool, url=URL, partner_no=B)
    first = (await subscriptions.list_live(pool, A))[0]
    assert await subscriptions.delete(pool, A, first.subscription_no, NOW)
    await subscribe(pool, url=f"{URL}-again")


async def test_a_deleted_subscription_is_gone_with_its_queue(pool: "Pool[asyncpg.Record]") -> None:
    made, other = await subscribe(pool), await subscribe(pool, PAUSED)
    for one in (made, other):
        await redelivery.redeliver(pool, A, one.subscription_no, NOW, event_ids=await write_events(pool, 3))
    assert await subscriptions.delete(pool, A, made.subscription_no, NOW)
    assert await queue(pool, made) == {}
    assert len(await queue(pool, other)) == 3
    assert not await subscriptions.delete(pool, A, made.subscription_no, NOW)
    assert await subscriptions.list_live(pool, A) == [other]
    assert await subscriptions.rotate(pool, KEY, A, made.subscription_no, NOW) is None


async def test_after_a_rotation_both_secrets_are_kept_for_a_day(pool: "Pool[asyncpg.Record]") -> None:
    made, first = await subscriptions.create(pool, KEY, A, URL, [ISSUED], None)
    second = await subscriptions.rotate(pool, KEY, A, made.subscription_no, NOW)
    row = await sealed(pool, made)
    assert (opened(row["sealed_secret"], made), opened(row["previous_sealed_secret"], made)) == (
        second,
        first,
    )
    assert row["previous_until"] == NOW + timedelta(days=1)

    soon = NOW + timedelta(minutes=4)
    third = await subscriptions.rotate(pool, KEY, A, made.subscription_no, soon)
    row = await sealed(pool, made)
    assert (opened(row["sealed_secret"], made), opened(row["previous_sealed_secret"], made)) == (third, first)
    assert row["previous_until"] == soon + timedelta(days=1)

    fourth = await subscriptions.rotate(pool, KEY, A, made.subscription_no, NOW + timedelta(hours=1))
    row = await sealed(pool, made)
    assert (opened(row["sealed_secret"], made), opened(row["previous_sealed_secret"], made)) == (
        fourth,
        third,
    )
    assert len({first, second, third, fourth}) == 4


async def test_a_test_reaches_the_subscription_that_asked(pool: "Pool[asyncpg.Record]") -> None:
    made, other = await subscribe(pool), await subscribe(pool, PAUSED)
    await pool.execute("UPDATE subscriptions SET failure_count = 9, held_until = now() + interval '1 h'")
    assert await subscriptions.request_test(pool, A, made.subscription_no)
    counts = await Sequencer(pool).run_once(NOW)
    assert counts.deliveries == 1
    assert len(await queue(pool, made)) == 1
    assert await queue(pool, other) == {}
    after = await subscriptions.find(pool, A, made.subscription_no)
    assert after is not None
    assert (after.failure_count, after.held_until) == (9, None)
    for failure_count, held in ((4, False), (5, True)):
        await pool.execute("UPDATE subscriptions SET failure_count = $1, held_until = now()", failure_count)
        found = await subscriptions.find(pool, A, made.subscription_no)
        assert found is not None
        assert (found.held_until is not None) == held, "below five it only says what counts"
    await pool.execute("UPDATE subscriptions SET disabled_at = now() WHERE subscription_no = 1")
    assert not await subscriptions.request_test(pool, A, made.subscription_no)


async def test_events_asked_for_by_name_are_queued_as_new(pool: "Pool[asyncpg.Record]") -> None:
    made = await subscribe(pool)
    events = await write_events(pool, 3)
    await pool.execute(
        "INSERT INTO deliveries VALUES (1, $1, $4, $4, 10, NULL, NULL, $4, 'gave up'),"
        " (1, $2, $4, $4, 3, 7, $4, NULL, NULL), (1, $3, $4, $4, 2, NULL, NULL, NULL, NULL)",
        *events,
        NOW,
    )
    later = NOW + timedelta(hours=1)
    assert await redelivery.redeliver(pool, A, 1, later, event_ids=[*events, events[0]]) == 2
    left = await queue(pool, made)
    assert left[events[1]]["leased_by"] == 7, "what a relay is at is left to it"
    assert left[events[1]]["due_at"] == NOW
    for event in (events[0], events[2]):
        row = left[event]
        assert (row["queued_at"], row["due_at"], row["attempt_count"]) == (later, later, 0)
        assert (row["parked_at"], row["parked_because"]) == (None, None)


async def test_an_event_of_another_partner_is_not_there(pool: "Pool[asyncpg.Record]") -> None:
    made = await subscribe(pool)
    own = await write_events(pool, 1)
    others = await write_events(pool, 1, partner_no=B)
    for event_ids in (others, [*own, *others], [10**12]):
        with pytest.raises(redelivery.EventUnknown, match=f"evt_{event_ids[-1]}"):
            await redelivery.redeliver(pool, A, 1, NOW, event_ids=event_ids)
    assert await queue(pool, made) == {}


async def test_a_time_means_what_the_subscription_asks_for(pool: "Pool[asyncpg.Record]") -> None:
    await make_drop(pool, "drop-b")
    made = await subscribe(pool, drop_ids=["drop-a"])
    other = await subscribe(pool, drop_ids=["drop-b"])
    events = await write_events(pool, 5)
    await write_events(pool, 5, kind="drop.paused")
    await write_events(pool, 5, partner_no=B)
    since, until = NOW + timedelta(minutes=1), NOW + timedelta(minutes=4)
    for one, expected in ((made, events[1:4]), (other, [])):
        count = await redelivery.redeliver(pool, A, one.subscription_no, NOW, since=since, until=until)
        assert count == len(expected)
        assert list(await queue(pool, one)) == expected


async def test_more_than_one_question_may_queue_is_refused_whole(
    pool: "Pool[asyncpg.Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REDELIVER_MAX_COUNT", 25)
    monkeypatch.setattr(redelivery, "CHUNK_COUNT", 10)
    made = await subscribe(pool)
    await write_events(pool, 26)
    until = NOW + timedelta(days=1)
    with pytest.raises(redelivery.TooManyEvents, match="shorter time"):
        await redelivery.redeliver(pool, A, 1, NOW, since=NOW, until=until)
    assert await queue(pool, made) == {}
    assert await redelivery.redeliver(pool, A, 1, NOW, since=NOW + timedelta(minutes=1), until=until) == 25
    with pytest.raises(redelivery.TooManyEvents, match="Name at most"):
        await redelivery.redeliver(pool, A, 1, NOW, event_ids=range(1, 1_002))
    await pool.execute("UPDATE deliveries SET parked_at = queued_at, parked_because = 'gave up'")
    monkeypatch.setattr(limits, "REDELIVER_MAX_COUNT", 15)
    assert [await redelivery.redeliver(pool, A, 1, NOW, parked=True) for _ in range(3)] == [15, 10, 0]


async def test_asking_again_after_it_broke_off_queues_each_once(
    pool: "Pool[asyncpg.Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redelivery, "CHUNK_COUNT", 10)
    made = await subscribe(pool)
    events = await write_events(pool, 25)
    until = NOW + timedelta(days=1)
    async with pool.acquire() as other:
        transaction = other.transaction()
        await transaction.start()
        await other.execute(
            "INSERT INTO deliveries (subscription_no, event_no, queued_at, due_at) VALUES (1, $1, $2, $2)",
            events[15],
            NOW,
        )
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(redelivery.redeliver(pool, A, 1, NOW, since=NOW, until=until), 1)
        await transaction.rollback()
    assert list(await queue(pool, made)) == events[:10], "what was committed stays"
    later = NOW + timedelta(hours=1)
    for _ in range(2):
        assert await redelivery.redeliver(pool, A, 1, later, since=NOW, until=until) == 25
        left = await queue(pool, made)
        assert list(left) == events
        assert {(row["queued_at"], row["due_at"], row["attempt_count"]) for row in left.values()} == {
            (later, later, 0)
        }


async def test_an_event_that_is_not_kept_any_more_is_said_to_be_so(pool: "Pool[asyncpg.Record]") -> None:
    await subscribe(pool)
    await pool.execute("DROP TABLE events_0")
    with pytest.raises(redelivery.EventUnknown, match="evt_3 is no longer kept"):
        await redelivery.redeliver(pool, A, 1, NOW, event_ids=[3])
    with pytest.raises(redelivery.EventUnknown, match="no event evt_1000003"):
        await redelivery.redeliver(pool, A, 1, NOW, event_ids=[1_000_003])


async def test_what_was_parked_is_queued_again_and_a_held_receiver_is_tried_at_once(
    pool: "Pool[asyncpg.Record]",
) -> None:
    made = await subscribe(pool)
    events = await write_events(pool, 4)
    await redelivery.redeliver(pool, A, 1, NOW, event_ids=events)
    await pool.execute(
        "UPDATE deliveries SET attempt_count = 10, parked_at = queued_at, parked_because = 'gave up'"
        " WHERE event_no > $1",
        events[1],
    )
    await pool.execute("UPDATE subscriptions SET failure_count = 9, held_until = now() + interval '1 h'")
    later = NOW + timedelta(days=4)
    assert await redelivery.redeliver(pool, A, 1, later, parked=True) == 2
    assert [row["due_at"] for row in (await queue(pool, made)).values()] == [NOW, NOW, later, later]
    after = await subscriptions.find(pool, A, 1)
    assert after is not None
    assert after.held_until is None
    await pool.execute("UPDATE subscriptions SET disabled_at = now()")
    with pytest.raises(redelivery.SubscriptionDisabled, match="410"):
        await redelivery.redeliver(pool, A, 1, later, parked=True)


async def test_asking_again_wakes_the_relays(pool: "Pool[asyncpg.Record]") -> None:
    await subscribe(pool)
    heard: asyncio.Queue[str] = asyncio.Queue()

    def hear(*said: object) -> None:
        heard.put_nowait(str(said[-1]))

    async with pool.acquire() as listener:
        await listener.add_listener("couponsvc_events", hear)
        await redelivery.redeliver(pool, A, 1, NOW, event_ids=await write_events(pool, 1))
        assert await asyncio.wait_for(heard.get(), 5) == "1"
        await listener.remove_listener("couponsvc_events", hear)


async def test_what_became_of_each_event_is_shown_newest_first(pool: "Pool[asyncpg.Record]") -> None:
    made = await subscribe(pool)
    await subscribe(pool, PAUSED)
    done, twice, waiting, parked, busy = await write_events(pool, 5)
    await redelivery.redeliver(pool, A, 1, NOW, event_ids=[twice, waiting, parked, busy])
    await pool.execute(
        "UPDATE deliveries SET parked_at = queued_at, parked_because = 'gave up' WHERE event_no = $1", parked
    )
    await pool.execute(
        "UPDATE deliveries SET leased_by = 7, leased_until = queued_at WHERE event_no = $1", busy
    )
    attempts = [
        (1, done, 1, NOW, 5, 503, "failed", "the receiver answered 503"),
        (1, done, 2, NOW + timedelta(seconds=5), 7, 204, "delivered", ""),
        (1, twice, 1, NOW, 7, 200, "delivered", ""),
        (1, parked, 10, NOW, 15_000, None, "failed", "no complete answer within 15 s"),
        (2, done, 1, NOW, 7, 200, "delivered", ""),
    ]
    await pool.executemany("INSERT INTO delivery_attempts VALUES ($1, $2, $3, $4, $5, $6, $7, $8)", attempts)

    found = await redelivery.deliveries(pool, made.subscription_no)
    assert [(one.event_no, one.state) for one in found] == [
        (busy, "delivering"),
        (parked, "parked"),
        (waiting, "waiting"),
        (twice, "waiting"),
        (done, "delivered"),
    ]
    assert [len(one.attempts) for one in found] == [0, 1, 0, 1, 2]
    assert [(attempt.status, attempt.outcome) for attempt in found[-1].attempts] == [
        (204, "delivered"),
        (503, "failed"),
    ]
    assert found[1].parked_because == "gave up"
    assert [one.due_at for one in found] == [None, None, NOW, NOW, None]
    assert {one.type for one in found} == {ISSUED}

    states: list[redelivery.DeliveryState] = ["delivering", "parked", "waiting", "delivered"]
    by_state = {
        state: [one.event_no for one in await redelivery.deliveries(pool, 1, state=state)] for state in states
    }
    assert by_state == {
        "delivering": [busy], "parked": [parked], "waiting": [waiting, twice], "delivered": [done],
    }  # fmt: skip
    seen: list[int] = []
    before = 2**63 - 1
    while page := await redelivery.deliveries(pool, 1, before=before, limit=2):
        seen += [one.event_no for one in page]
        before = seen[-1]
    assert seen == [busy, parked, waiting, twice, done]


async def test_a_subscription_gets_what_a_commit_tells_its_partner(pool: "Pool[asyncpg.Record]") -> None:
    made, other = await subscribe(pool), await subscribe(pool, partner_no=B)
    drop = await make_drop(pool, "drop-c")
    await issue(pool, drop, 3)
    await Sequencer(pool).run_once(NOW)
    assert [one.type for one in await redelivery.deliveries(pool, made.subscription_no)] == [ISSUED]
    assert await queue(pool, other) == {}
