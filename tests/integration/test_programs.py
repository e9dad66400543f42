"""Definitions in Postgres: what is recorded, what two operators at once may do, what a crash leaves."""

import asyncio
import json
from collections.abc import AsyncIterator

import asyncpg
import pytest
from redis.asyncio import Redis

from couponsvc.ledger import codes
from couponsvc.reconcile.reconciler import Reconciler
from couponsvc.settings import Settings
from couponsvc.values import keys
from tests.integration.house import House, code_of, drop, template


@pytest.fixture
async def house(
    settings: Settings, pool: "asyncpg.Pool[asyncpg.Record]", redis: Redis
) -> AsyncIterator[House]:
    async with House.open(settings, pool, redis) as opened:
        yield opened


async def test_programs_and_templates_are_created_updated_and_left_alone(house: House) -> None:
    statuses = []
    for name in ("A", "A", "B"):
        statuses.append((await house.call("PUT", "/v1/programs/test", {"name": name})).status_code)
        body = template(name=name)
        answer = await house.call("PUT", "/v1/programs/test/templates/dining-20", body)
        statuses.append(answer.status_code)
    assert statuses == [201, 201, 200, 200, 200, 200]
    assert (await house.call("GET", "/v1/programs/test")).json()["name"] == "B"
    found = (await house.call("GET", "/v1/programs/test/templates/dining-20")).json()
    assert {name: found[name] for name in template()} == template(name="B")
    actions = await house.pool.fetch("SELECT action, actor FROM operations WHERE subject LIKE 'test%'")
    assert [row["action"] for row in actions] == [
        "program.create",
        "template.create",
        "program.update",
        "template.update",
    ]
    assert len({row["actor"] for row in actions}) == 1


async def test_every_operation_names_the_key_that_did_it(house: House) -> None:
    await house.drop()
    await house.call("POST", "/v1/drops/wed/restock", {"current_quantity": 10, "add": 5})
    key_id = await house.pool.fetchval("SELECT key_id FROM credentials WHERE holder = 'operator'")
    row = await house.pool.fetchrow("SELECT actor, detail FROM operations WHERE action = 'drop.restocked'")
    assert row is not None
    assert row["actor"] == key_id
    assert json.loads(row["detail"]) == {"drop_id": "wed", "added": 5, "quantity": 15}


async def test_a_program_created_by_many_at_once_has_one_code_key(house: House) -> None:
    answers = await asyncio.gather(*(house.call("PUT", "/v1/programs/test", {"name": "A"}) for _ in range(6)))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [201]
    sealed = await house.pool.fetchval("SELECT sealed_code_key FROM programs")
    key = house.services.master_key.open(sealed, codes.KEY_PURPOSE)
    assert len(key) == codes.KEY_BYTES


async def test_what_a_template_belongs_to_must_exist(house: House) -> None:
    assert (
        code_of(await house.call("PUT", "/v1/programs/no/templates/dining-20", template()))
        == "unknown_program"
    )
    await house.program()
    assert code_of(await house.call("GET", "/v1/programs/test/templates/no")) == "unknown_template"
    assert code_of(await house.call("GET", "/v1/programs/no/templates")) == "unknown_program"


async def test_a_changed_region_is_announced_for_every_drop_that_is_not_closed(house: House) -> None:
    for name in ("aa", "bb", "cc"):
        await house.drop(name)
    await house.call("POST", "/v1/drops/cc/close")
    async with house.redis.pubsub(ignore_subscribe_messages=True) as heard:
        await heard.subscribe(keys.control_channel(0))
        await heard.get_message(timeout=1)
        await house.call("PUT", "/v1/programs/test", {"name": "Test", "region": "370200"})
        messages = [await heard.get_message(timeout=1) for _ in range(3)]
    told = {int(message["data"]) for message in messages if message}
    assert told == {(await house.standing(name)).drop_no for name in ("aa", "bb")}
    assert (await house.standing("aa")).region == "370200"


async def test_a_change_is_told_as_a_whole_and_a_raised_quantity_also_as_a_restock(house: House) -> None:
    stood = await house.drop(quantity=10)
    window = {name: stood[name] for name in ("opens_at", "closes_at")}
    for quantity in (12, 8):
        answer = await house.call("PUT", "/v1/drops/wed", drop(quantity=quantity, **window))
        assert (answer.json()["quantity"], answer.json()["available"]) == (quantity, quantity)
    events = await house.pool.fetch("SELECT type, data FROM outbox ORDER BY outbox_no")
    kinds = [row["type"] for row in events]
    assert kinds == ["drop.defined", "drop.defined", "drop.restocked", "drop.defined"]
    quantities = [json.loads(row["data"])["quantity"] for row in events]
    assert quantities == [10, 12, 12, 8]
    assert json.loads(events[2]["data"]) == {"drop_id": "wed", "added": 2, "quantity": 12}


async def test_a_refused_change_leaves_no_trace(house: House) -> None:
    stood = await house.drop(quantity=10)
    await house.issue("wed", "p1", "p2")
    before = await traces(house)
    window = {name: stood[name] for name in ("opens_at", "closes_at")}
    for refused in (
        drop(quantity=1, **window),
        drop(per_person_limit=2, **window),
        drop(partners=[], **window),
    ):
        assert code_of(await house.call("PUT", "/v1/drops/wed", refused)) == "conflict"
    assert (
        code_of(await house.call("POST", "/v1/drops/wed/restock", {"current_quantity": 9, "add": 1}))
        == "conflict"
    )
    assert await traces(house) == before


async def traces(house: House) -> tuple[object, ...]:
    stood = await house.standing("wed")
    state = await house.redis.hgetall(keys.state_key(0, stood.drop_no, stood.epoch))
    counts = [
        await house.pool.fetchval(f"SELECT count(*) FROM {table}") for table in ("operations", "outbox")
    ]
    return stood, state, *counts


async def test_a_lower_quantity_whose_commit_fails_gives_nobody_too_many_and_is_mended(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("couponsvc.reconcile.attending.AHEAD_FOR_S", 0.2)  # a test need not be that patient
    stood = await house.drop(quantity=10)
    await house.pool.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no commit'; END $$;"
        "CREATE CONSTRAINT TRIGGER fail_at_commit AFTER UPDATE ON drops DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION fail()"
    )
    window = {name: stood[name] for name in ("opens_at", "closes_at")}
    lowered = await house.call("PUT", "/v1/drops/wed", drop(quantity=2, **window))
    assert lowered.status_code == 500
    assert (await house.standing("wed")).quantity == 10
    await house.pool.execute("DROP TRIGGER fail_at_commit ON drops")
    assert await house.grant("wed", "p1", "p2", "p3") == "GGS"
    await house.drain()
    assert (await house.call("GET", "/v1/drops/wed")).json()["state"] == "open"  # sold out is for good
    await mended(house)
    found = (await house.call("GET", "/v1/drops/wed")).json()
    assert (found["available"], found["issued"]) == (8, 2)


async def mended(house: House) -> None:
    reconciler = await Reconciler.open(house.settings)
    try:
        for _ in range(100):
            await reconciler.run_once()
            found = (await house.call("GET", "/v1/drops/wed")).json()
            if found["available"] == 8:
                return
            await asyncio.sleep(0.05)
        pytest.fail(f"not mended: {found}")
    finally:
        await reconciler.close()


async def test_drops_of_a_program_without_template_changes_can_be_defined_side_by_side(house: House) -> None:
    await house.program()
    answers = await asyncio.gather(*(house.call("PUT", f"/v1/drops/drop-{n}", drop()) for n in range(8)))
    assert [answer.status_code for answer in answers] == [201] * 8


async def test_operators_who_change_one_drop_at_once_leave_it_as_one_of_them_said(house: House) -> None:
    stood = await house.drop(quantity=10)
    window = {name: stood[name] for name in ("opens_at", "closes_at")}
    quantities = [11, 9, 14, 8, 12]
    answers = await asyncio.gather(
        *(house.call("PUT", "/v1/drops/wed", drop(quantity=quantity, **window)) for quantity in quantities)
    )
    assert [answer.status_code for answer in answers] == [200] * 5
    found = (await house.call("GET", "/v1/drops/wed")).json()
    assert found["quantity"] in quantities
    assert found["available"] == found["quantity"]
    assert (await house.standing("wed")).version == 1 + len(quantities)
