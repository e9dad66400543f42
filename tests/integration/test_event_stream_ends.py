"""A stream ends rather than skip an event, and leaves its client with an id that it may come back with."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from redis.asyncio import Redis

from couponsvc.api import event_stream
from couponsvc.outbox.reading import EventReader
from couponsvc.settings import Settings
from couponsvc.values.event import Event
from tests.integration.feed import (
    Place,
    Served,
    Told,
    everything,
    forget_the_first_million,
    issue,
    issue_apart,
    number,
    page,
    serving,
    take,
    told,
    waiters,
)
from tests.integration.house import code_of

pytestmark = pytest.mark.slow  # streams that are waited for


@pytest.fixture
async def served(
    settings: Settings,
    pool: "asyncpg.Pool[asyncpg.Record]",
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Served]:
    monkeypatch.setattr(event_stream, "COMMENT_EVERY_S", 0.2)
    async with serving(settings, pool, redis) as served:
        yield served


async def to_the_end(served: Served, query: str = "") -> list[str]:
    """Cursors of a stream that ends by itself."""
    async with served.listen(query) as answer, asyncio.timeout(10):
        assert answer.status_code == 200
        return [item.cursor async for item in told(answer) if isinstance(item, Told)]


async def refusal(served: Served, last_event_id: str) -> str:
    """What somebody is answered who comes back with this id."""
    async with served.listen(last_event_id=last_event_id) as answer:
        await answer.aread()
        return code_of(answer)


@pytest.mark.parametrize("query", ["", "?after=0", "?after=1"])
async def test_a_stream_ends_where_a_partition_was_dropped_under_it(
    served: Served, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    """Between its first page and its second one."""
    house = served.house
    await house.drop(quantity=100)
    await issue_apart(house.pool, "wed", *[1] * 10)
    cursors = [event["id"][4:] for event in await everything(house)]
    read_page = EventReader.page
    reads = 0

    async def read_and_forget(reader: EventReader, partner_no: int, after: int, limit: int) -> list[Event]:
        nonlocal reads
        reads += 1
        if reads == 2:
            await forget_the_first_million(house)
            await issue(house.pool, "wed")
            await number(house.pool)
        return await read_page(reader, partner_no, after, limit)

    monkeypatch.setattr(EventReader, "page", read_and_forget)
    first = 1 if query == "?after=1" else 0
    heard = await to_the_end(served, query)
    assert heard == cursors[first : first + event_stream.PAGE_COUNT]
    assert await refusal(served, heard[-1]) == "events_gone"
    async with served.listen() as answer:
        assert [event.cursor for event in await take(answer, 1)] == ["1000001"]


async def test_a_quiet_stream_moves_the_id_of_its_client_past_what_is_dropped(served: Served) -> None:
    """An id without data: a client of WHATWG HTML dispatches nothing and comes back with it."""
    house = served.house
    await house.drop(quantity=100, partners=["bank-a", "bank-b"])
    await number(house.pool)
    cursor = (await page(house))["next"]
    place = Place(cursor)
    async with served.listen(last_event_id=cursor) as answer, asyncio.timeout(20):
        await issue(house.pool, "wed", 1, "bank-b")
        await number(house.pool)
        await until_past(told(answer, place), place, int(cursor))
        await house.pool.execute("UPDATE event_counter SET last_event_no = 999999")
    async with served.listen(last_event_id=place.last_event_id) as answer, asyncio.timeout(20):
        items = told(answer, place)
        await until_past(items, place, 999_998)
        await forget_the_first_million(house)
        await until_past(items, place, 999_999)
    await issue(house.pool, "wed", 1, "bank-a")
    await number(house.pool)
    async with served.listen(last_event_id=place.last_event_id) as answer:
        assert answer.status_code == 200
        assert [event.cursor for event in await take(answer, 1)] == ["1000001"]


async def test_a_stream_without_any_event_has_an_id_to_come_back_with(served: Served) -> None:
    await forget_the_first_million(served.house)
    place = Place()
    async with served.listen(by="bank-b") as answer, asyncio.timeout(20):
        await until_past(told(answer, place), place, 0)
    assert place.last_event_id == "1000000"


async def test_a_stream_ends_at_once_when_a_ledger_restored_from_an_older_copy_is_behind_it(
    served: Served,
) -> None:
    house = served.house
    await house.drop(quantity=100)
    await issue_apart(house.pool, "wed", 1, 1)
    newest = await house.pool.fetchval("SELECT last_event_no FROM event_counter")
    async with served.listen(f"?after={newest}") as answer, asyncio.timeout(20):
        await waiters(served, 1)
        await house.pool.execute("UPDATE event_counter SET last_event_no = last_event_no - 1")
        assert [item async for item in told(answer) if isinstance(item, Told)] == []
    assert await refusal(served, str(newest)) == "events_gone"


async def test_a_stream_ends_before_an_event_whose_vouchers_do_not_stand(served: Served) -> None:
    house = served.house
    await house.drop(quantity=100)
    await issue_apart(house.pool, "wed", 1, 1, 1)
    cursors = [event["id"][4:] for event in await everything(house)]
    await house.pool.execute("DELETE FROM vouchers WHERE seq = 2")
    heard = await to_the_end(served)
    assert heard == cursors[:-2]
    assert await refusal(served, heard[-1]) == "ledger_unavailable"


async def until_past(items: AsyncIterator[Told | str], place: Place, event_no: int) -> None:
    """Hear nothing but comments until the id is higher."""
    while int(place.last_event_id or 0) <= event_no:
        assert await anext(items) == "nothing new"
