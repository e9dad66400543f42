"""A partner that keeps what the last event of a drop said knows the drop as `GET` answers it.

Whatever operators, clocks and commits do in whatever order: nothing about a drop changes for a partner
without an event that says so.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import pytest
from redis.asyncio import Redis

from couponsvc.settings import Settings
from tests.integration.feed import number
from tests.integration.house import HOUR, House, code_of, drop
from tests.integration.outbox_scene import documents, feed, prepare, told

Pool = asyncpg.Pool
PARTNERS: Final = ("bank-a", "bank-b")
BEGUN: Final = timedelta(seconds=-2)
"""Long enough ago that the clocks of Redis and of this process agree that it has passed."""
SAID_OF_A_DEFINITION: Final = (
    "program_id", "template_id", "quantity", "per_person_limit", "opens_at", "closes_at",
    "face_value_fen", "min_spend_fen", "valid_for_hours", "state",
)  # fmt: skip
STEP_COUNT: Final = 14


@pytest.fixture
async def house(settings: Settings, pool: "Pool[asyncpg.Record]", redis: Redis) -> AsyncIterator[House]:
    await prepare(pool)
    async with House.open(settings, pool, redis) as opened:
        await opened.program()
        yield opened


class Books:
    """What a partner's own books say of a drop, from its events alone: the last word of each member."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}
        self.visible = False

    def hear(self, event: dict[str, Any]) -> None:
        self.visible = not event["type"].endswith("drop.withdrawn.v1")
        if "vouchers" not in event["data"]:
            self.known |= event["data"]


async def books(house: House, partner_id: str) -> Books:
    """Kept from the whole feed of a partner."""
    partner_no = await house.pool.fetchval(
        "SELECT partner_no FROM partners WHERE partner_id = $1", partner_id
    )
    kept = Books()
    for event in documents(await feed(house.pool, partner_no)):
        kept.hear(event)
    return kept


async def assert_partners_know_the_drop(house: House, walk: object = None) -> None:
    await number(house.pool)
    for partner_id in PARTNERS:
        answer = await house.call("GET", "/v1/drops/wed", by=partner_id)
        kept = await books(house, partner_id)
        if answer.status_code == 404:
            assert not kept.visible, (partner_id, walk)
            continue
        stands = answer.json()
        assert kept.visible, (partner_id, walk)
        assert {name: kept.known[name] for name in SAID_OF_A_DEFINITION} == {
            name: stands[name] for name in SAID_OF_A_DEFINITION
        }, (partner_id, walk)


class Operator:
    """Does one thing after another to a drop, as far as the service lets it."""

    def __init__(self, house: House, chance: random.Random) -> None:
        self.house = house
        self.chance = chance
        self.definition: dict[str, Any] = {}
        self.person_count = 0
        self.done: list[str] = []

    async def define(self, **changes: Any) -> None:
        wanted = {**self.definition, **changes}
        answer = await self.house.call("PUT", "/v1/drops/wed", drop(**wanted))
        if answer.status_code == 409:
            assert code_of(answer) == "conflict"
            return
        assert answer.is_success, answer.text
        self.definition = {
            name: answer.json()[name] for name in ("opens_at", "closes_at", "quantity", "partners")
        }

    async def step(self) -> None:
        steps: dict[str, Callable[[], Awaitable[object]]] = {
            "pause": self.pause,
            "resume": self.resume,
            "restock": self.restock,
            "lower": self.lower,
            "raise": lambda: self.define(quantity=self.definition["quantity"] + 2),
            "open": lambda: self.define(opens_at=BEGUN),
            "open and end": lambda: self.define(opens_at=2 * BEGUN, closes_at=BEGUN),
            "extend": lambda: self.define(closes_at=timedelta(hours=self.chance.randint(2, 9))),
            "admit": lambda: self.define(partners=list(PARTNERS)),
            "expel": lambda: self.define(partners=["bank-a"]),
            "issue": self.issue,
            "issue all": lambda: self.issue(9),
            "number": lambda: number(self.house.pool),
            "wait": lambda: asyncio.sleep(0.02),
        }
        name = self.chance.choice(list(steps))
        self.done.append(name)
        await steps[name]()

    async def pause(self) -> None:
        await self.house.call("POST", "/v1/drops/wed/pause")

    async def resume(self) -> None:
        await self.house.call("POST", "/v1/drops/wed/resume")

    async def restock(self) -> None:
        body = {"current_quantity": self.definition["quantity"], "add": 1}
        answer = await self.house.call("POST", "/v1/drops/wed/restock", body)
        self.definition["quantity"] = answer.json()["quantity"]

    async def lower(self) -> None:
        """To what is issued, where that is anything: the drop is sold out then."""
        stands = (await self.house.call("GET", "/v1/drops/wed")).json()
        await self.define(quantity=max(1, stands["issued"]))

    async def issue(self, count: int = 2) -> None:
        persons = [f"p{self.person_count + place}" for place in range(count)]
        self.person_count += count
        await self.house.grant("wed", *persons)
        await self.house.drain()


@pytest.mark.slow  # a second each
@pytest.mark.parametrize("seed", range(8))
async def test_after_whatever_happened_the_last_events_say_how_the_drop_stands(
    house: House, seed: int
) -> None:
    operator = Operator(house, random.Random(seed))  # noqa: S311 - a walk that the seed repeats
    await operator.define(quantity=4, opens_at=operator.chance.choice([BEGUN, HOUR]), closes_at=2 * HOUR)
    for _ in range(STEP_COUNT):
        await operator.step()
        if operator.chance.random() < 0.3:
            await assert_partners_know_the_drop(house, operator.done)
    await assert_partners_know_the_drop(house, operator.done)
    await house.call("POST", "/v1/drops/wed/close")
    await assert_partners_know_the_drop(house, operator.done)


async def test_a_drop_that_is_lowered_to_what_is_issued_is_told_to_be_sold_out(house: House) -> None:
    stands = await house.drop(quantity=5)
    await house.issue("wed", "p1", "p2")
    window = {name: stands[name] for name in ("opens_at", "closes_at")}
    for _ in range(2):
        assert (await house.call("PUT", "/v1/drops/wed", drop(quantity=2, **window))).is_success
    await number(house.pool)
    events = await feed(house.pool, 1)
    assert told(events) == ["drop.defined", "drop.opened", "1..2", "drop.defined", "drop.sold_out"]
    assert documents(events)[-1]["data"] == {"drop_id": "wed", "quantity": 2, "state": "sold_out"}


async def test_a_partner_that_is_admitted_late_is_told_what_the_drop_is_and_one_that_leaves_is_told_so(
    house: House,
) -> None:
    stands = await house.drop(quantity=5)
    window = {name: stands[name] for name in ("opens_at", "closes_at")}
    await house.call("POST", "/v1/drops/wed/pause")
    await number(house.pool)
    for partners in (["bank-a", "bank-b"], ["bank-a"]):
        answer = await house.call("PUT", "/v1/drops/wed", drop(quantity=5, partners=partners, **window))
        assert answer.is_success, answer.text
        await number(house.pool)
    heard = documents(await feed(house.pool, 2))
    assert [event["type"].split(".")[2] for event in heard] == ["defined", "withdrawn"]
    assert [event["sequence"] for event in heard] == ["0000000001", "0000000002"]
    assert heard[0]["data"]["state"] == "paused"
    assert heard[0]["data"]["closes_at"] == stands["closes_at"]
    assert heard[1]["data"] == {"drop_id": "wed"}
    others = told(await feed(house.pool, 1))
    assert others == ["drop.defined", "drop.opened", "drop.paused", "drop.defined", "drop.defined"]


async def test_an_opening_does_not_say_open_where_the_drop_is_paused_or_sold_out(house: House) -> None:
    stands = await house.drop(quantity=1, opens_at=HOUR, closes_at=2 * HOUR)
    await house.call("POST", "/v1/drops/wed/pause")
    await number(house.pool)
    soon = {"opens_at": BEGUN, "closes_at": stands["closes_at"]}
    assert (await house.call("PUT", "/v1/drops/wed", drop(quantity=1, **soon))).is_success
    await number(house.pool)
    assert documents(await feed(house.pool, 1))[-1]["data"]["state"] == "paused"
    await house.call("POST", "/v1/drops/wed/resume")
    await house.issue("wed", "p1")
    await house.pool.execute("UPDATE drops SET closes_at = $1", datetime.now(UTC))
    await number(house.pool)
    ended = documents(await feed(house.pool, 1))[-1]
    assert (ended["type"].split(".")[2], ended["data"]["state"]) == ("ended", "ended")
    await house.pool.execute("UPDATE drops SET closes_at = $1", datetime.now(UTC) + HOUR)
    await number(house.pool)
    again = documents(await feed(house.pool, 1))[-1]
    assert (again["type"].split(".")[2], again["data"]["state"]) == ("opened", "sold_out")


async def test_a_drop_that_sells_out_again_after_a_restock_says_so_again(house: House) -> None:
    await house.drop(quantity=1)
    await house.issue("wed", "p1")
    assert (await house.call("POST", "/v1/drops/wed/restock", {"current_quantity": 1, "add": 1})).is_success
    await house.issue("wed", "p2")
    await number(house.pool)
    kinds = [kind for kind in told(await feed(house.pool, 1)) if kind in {"drop.sold_out", "drop.restocked"}]
    assert kinds == ["drop.sold_out", "drop.restocked", "drop.sold_out"]
