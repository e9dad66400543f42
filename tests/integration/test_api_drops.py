"""Drops over HTTP: definitions keep their promises."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from redis.asyncio import Redis

from couponsvc.settings import Settings
from couponsvc.values import keys
from tests.integration.house import HOUR, House, code_of, drop


@pytest.fixture
async def house(
    settings: Settings, pool: "asyncpg.Pool[asyncpg.Record]", redis: Redis
) -> AsyncIterator[House]:
    async with House.open(settings, pool, redis) as opened:
        yield opened


async def test_a_new_drop_is_created_and_open_at_once(house: House) -> None:
    await house.program()
    answer = await house.call("PUT", "/v1/drops/wed", drop())
    assert answer.status_code == 201
    found = answer.json()
    assert (found["state"], found["available"], found["pending"], found["issued"]) == ("open", 10, 0, 0)
    assert found["sold_out_at"] is None
    assert await house.grant("wed", "p1") == "G"


async def test_defining_the_same_drop_again_changes_nothing(house: House) -> None:
    body = drop()
    await house.program()
    first = await house.call("PUT", "/v1/drops/wed", body)
    before = await house.standing("wed")
    again = await house.call("PUT", "/v1/drops/wed", body)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert await house.standing("wed") == before
    actions = await house.pool.fetch("SELECT action FROM operations WHERE subject = 'wed'")
    assert [row["action"] for row in actions] == ["drop.create"]


async def test_figures_add_up_to_the_quantity_while_grants_are_pending(house: House) -> None:
    await house.drop(quantity=3)
    await house.issue("wed", "p1")
    await house.grant("wed", "p2")
    found = (await house.call("GET", "/v1/drops/wed")).json()
    assert (found["available"], found["pending"], found["issued"]) == (1, 1, 1)


async def test_state_follows_window_status_and_stock(house: House) -> None:
    await house.drop("later", opens_at=HOUR, closes_at=2 * HOUR)
    await house.drop("over", opens_at=-2 * HOUR, closes_at=-HOUR)
    await house.drop("gone", quantity=1)
    states = {}
    await house.issue("gone", "p1")
    for drop_id in ("later", "over", "gone"):
        states[drop_id] = (await house.call("GET", f"/v1/drops/{drop_id}")).json()["state"]
    assert states == {"later": "scheduled", "over": "ended", "gone": "sold_out"}
    assert (await house.call("GET", "/v1/drops/gone")).json()["sold_out_at"] is not None


async def test_a_drop_whose_last_unit_is_pending_is_still_open(house: House) -> None:
    await house.drop(quantity=1)
    await house.grant("wed", "p1")
    found = (await house.call("GET", "/v1/drops/wed")).json()
    assert (found["state"], found["available"], found["pending"]) == ("open", 0, 1)


async def test_a_drop_that_redis_lost_is_rebuilding(house: House) -> None:
    await house.drop()
    await house.redis.flushall()
    found = (await house.call("GET", "/v1/drops/wed")).json()
    assert (found["state"], found["available"], found["pending"], found["issued"]) == ("rebuilding", 0, 0, 0)


async def test_a_drop_on_an_unchecked_redis_is_rebuilding(house: House) -> None:
    await house.drop()
    await house.pool.execute("UPDATE blessings SET run_id = 'another'")
    assert (await house.call("GET", "/v1/drops/wed")).json()["state"] == "rebuilding"


async def test_pause_resume_and_close_reach_the_gate_and_the_outbox_once(house: House) -> None:
    await house.drop()
    for action, letter in (("pause", "Z"), ("pause", "Z"), ("resume", "G"), ("close", "E"), ("close", "E")):
        answer = await house.call("POST", f"/v1/drops/wed/{action}")
        assert answer.status_code == 200, answer.text
        assert await house.grant("wed", action) == letter
    events = await house.pool.fetch("SELECT type FROM outbox ORDER BY outbox_no")
    assert [row["type"] for row in events] == ["drop.defined", "drop.paused", "drop.resumed", "drop.closed"]


async def test_a_closed_drop_stays_closed(house: House) -> None:
    await house.drop()
    await house.call("POST", "/v1/drops/wed/close")
    for action in ("pause", "resume"):
        assert code_of(await house.call("POST", f"/v1/drops/wed/{action}")) == "conflict"
    restock = await house.call("POST", "/v1/drops/wed/restock", {"current_quantity": 10, "add": 1})
    assert code_of(restock) == "conflict"
    assert code_of(await house.call("PUT", "/v1/drops/wed", drop(quantity=11))) == "conflict"
    assert (await house.call("GET", "/v1/drops/wed")).json()["state"] == "closed"


async def test_restock_adds_units_and_reopens_a_sold_out_drop(house: House) -> None:
    await house.drop(quantity=1)
    await house.issue("wed", "p1")
    answer = await house.call("POST", "/v1/drops/wed/restock", {"current_quantity": 1, "add": 2})
    found = answer.json()
    assert (found["quantity"], found["available"], found["state"]) == (3, 2, "open")
    assert found["sold_out_at"] is None
    assert await house.grant("wed", "p2", "p3", "p4") == "GGS"


async def test_concurrent_restocks_lose_no_update(house: House) -> None:
    await house.drop(quantity=10)
    body = {"current_quantity": 10, "add": 5}
    answers = await asyncio.gather(*(house.call("POST", "/v1/drops/wed/restock", body) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
    found = (await house.call("GET", "/v1/drops/wed")).json()
    assert (found["quantity"], found["available"]) == (15, 15)


async def test_quantity_can_be_lowered_to_what_nobody_was_granted(house: House) -> None:
    await house.drop(quantity=10)
    await house.issue("wed", "p1", "p2")
    await house.grant("wed", "p3")
    body = drop(quantity=3)
    stood = (await house.call("GET", "/v1/drops/wed")).json()
    body.update({name: stood[name] for name in ("opens_at", "closes_at")})
    lowered = (await house.call("PUT", "/v1/drops/wed", body)).json()
    assert (lowered["quantity"], lowered["available"], lowered["pending"], lowered["issued"]) == (3, 0, 1, 2)
    refused = await house.call("PUT", "/v1/drops/wed", {**body, "quantity": 2})
    assert code_of(refused) == "conflict"
    assert "available" in refused.json()["detail"]
    below_issued = await house.call("PUT", "/v1/drops/wed", {**body, "quantity": 1})
    assert "issued" in below_issued.json()["detail"]
    assert (await house.standing("wed")).quantity == 3
    assert await house.grant("wed", "p4") == "S"


async def test_a_lowered_quantity_is_refused_while_the_gate_cannot_tell(house: House) -> None:
    await house.drop(quantity=10)
    stood = (await house.call("GET", "/v1/drops/wed")).json()
    await house.redis.flushall()
    body = drop(quantity=5, opens_at=stood["opens_at"], closes_at=stood["closes_at"])
    assert code_of(await house.call("PUT", "/v1/drops/wed", body)) == "rebuilding"
    assert (await house.standing("wed")).quantity == 10


async def test_the_window_of_an_open_drop_may_only_be_extended(house: House) -> None:
    stood = await house.drop()
    body = drop(opens_at=stood["opens_at"], closes_at=stood["closes_at"])
    later = await house.call("PUT", "/v1/drops/wed", {**body, **_only(drop(opens_at=HOUR / 2), "opens_at")})
    earlier = await house.call(
        "PUT", "/v1/drops/wed", {**body, **_only(drop(closes_at=HOUR / 2), "closes_at")}
    )
    assert (code_of(later), code_of(earlier)) == ("conflict", "conflict")
    extended = await house.call(
        "PUT", "/v1/drops/wed", {**body, **_only(drop(closes_at=HOUR * 9), "closes_at")}
    )
    assert extended.status_code == 200
    assert extended.json()["closes_at"] > stood["closes_at"]


async def test_the_window_of_a_scheduled_drop_may_move_freely_and_the_gate_follows(house: House) -> None:
    await house.drop(opens_at=HOUR, closes_at=2 * HOUR)
    assert await house.grant("wed", "p1") == "N"
    await house.drop(opens_at=-HOUR, closes_at=HOUR)
    assert await house.grant("wed", "p1") == "G"


async def test_rules_of_an_opened_drop_are_frozen(house: House) -> None:
    stood = await house.drop()
    await house.call(
        "PUT",
        "/v1/programs/test/templates/other",
        {"name": "other", "face_value_fen": 1, "min_spend_fen": 0, "valid_for_hours": 1},
    )
    body = drop(opens_at=stood["opens_at"], closes_at=stood["closes_at"])
    for change in ({"per_person_limit": 2}, {"template_id": "other"}):
        refused = await house.call("PUT", "/v1/drops/wed", {**body, **change})
        assert code_of(refused) == "conflict"
        assert next(iter(change)) in refused.json()["detail"]


async def test_rules_of_a_scheduled_drop_change_under_a_new_epoch(house: House) -> None:
    stood = await house.drop(opens_at=HOUR, closes_at=2 * HOUR)
    before = await house.standing("wed")
    body = drop(opens_at=stood["opens_at"], closes_at=stood["closes_at"], per_person_limit=2)
    assert (await house.call("PUT", "/v1/drops/wed", body)).json()["state"] == "scheduled"
    after = await house.standing("wed")
    assert (after.epoch, after.version) == (before.epoch + 1, before.version + 1)
    published = await house.redis.hget(keys.shard_key(0), keys.epoch_field(after.drop_no))
    assert published == str(after.epoch).encode()


async def test_a_changed_template_reaches_scheduled_drops_only_when_they_are_defined_again(
    house: House,
) -> None:
    frozen = await house.drop("frozen")
    scheduled = await house.drop("scheduled", opens_at=HOUR, closes_at=2 * HOUR)
    await house.call(
        "PUT",
        "/v1/programs/test/templates/dining-20",
        {"name": "30 off 60", "face_value_fen": 3000, "min_spend_fen": 6000, "valid_for_hours": 48},
    )
    values = {}
    for stood in (frozen, scheduled):
        name = stood["drop_id"]
        body = drop(opens_at=stood["opens_at"], closes_at=stood["closes_at"])
        answer = await house.call("PUT", f"/v1/drops/{name}", body)
        assert answer.status_code == 200
        values[name] = answer.json()["face_value_fen"]
    assert values == {"frozen": 2000, "scheduled": 3000}


async def test_a_partner_with_vouchers_cannot_leave_a_drop(house: House) -> None:
    stood = await house.drop(partners=["bank-a", "bank-b"])
    await house.issue("wed", "p1", partner="bank-a")
    body = drop(opens_at=stood["opens_at"], closes_at=stood["closes_at"])
    refused = await house.call("PUT", "/v1/drops/wed", {**body, "partners": ["bank-b"]})
    assert code_of(refused) == "conflict"
    left = await house.call("PUT", "/v1/drops/wed", {**body, "partners": ["bank-a"]})
    assert left.json()["partners"] == ["bank-a"]
    assert code_of(await house.call("GET", "/v1/drops/wed", by="bank-b")) == "unknown_drop"


async def test_what_a_drop_names_must_exist(house: House) -> None:
    await house.program()
    for change, code in (
        ({"program_id": "none"}, "unknown_program"),
        ({"template_id": "none"}, "unknown_template"),
        ({"partners": ["bank-a", "bank-z"]}, "unknown_partner"),
    ):
        answer = await house.call("PUT", "/v1/drops/wed", drop(**change))
        assert code_of(answer) == code
        assert answer.status_code == 404
    assert code_of(await house.call("GET", "/v1/drops/wed")) == "unknown_drop"


async def test_drops_created_at_the_same_moment_are_one(house: House) -> None:
    await house.program()
    body = drop()
    answers = await asyncio.gather(*(house.call("PUT", "/v1/drops/wed", body) for _ in range(6)))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [201]
    assert await house.pool.fetchval("SELECT count(*) FROM drops") == 1


async def test_every_change_is_announced_on_the_control_channel(house: House) -> None:
    await house.drop()
    drop_no = (await house.standing("wed")).drop_no
    async with house.redis.pubsub(ignore_subscribe_messages=True) as heard:
        await heard.subscribe(keys.control_channel(0))
        await heard.get_message(timeout=1)
        await house.call("POST", "/v1/drops/wed/pause")
        message = await heard.get_message(timeout=2)
    assert message is not None
    assert int(message["data"]) == drop_no


async def test_lists_are_paged_in_the_order_of_names(house: House) -> None:
    for name in ("aa", "bb", "cc"):
        await house.drop(name)
    first = (await house.call("GET", "/v1/drops?limit=2")).json()
    second = (await house.call("GET", f"/v1/drops?limit=2&after={first['next']}")).json()
    assert [found["drop_id"] for found in first["drops"] + second["drops"]] == ["aa", "bb", "cc"]
    assert second["next"] is None


def _only(body: dict[str, object], name: str) -> dict[str, object]:
    return {name: body[name]}
