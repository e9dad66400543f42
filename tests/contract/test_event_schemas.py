"""Events as partners were promised them: CloudEvents 1.0, described by schemas, the same bytes for ever.

The vectors are what was sent for one ledger; they stand for every event that partners hold. Where one
of them differs, a promise is broken: give the new form a new `type` instead.
"""

import json
import re
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import jsonschema
import pytest
from redis.asyncio import Redis

from couponsvc.outbox.reading import EventReader
from couponsvc.settings import Settings
from couponsvc.values.event import Event, EventType
from tests.integration.house import House
from tests.integration.outbox_scene import NOW, admit, commit, number_all, prepare, subscribe, tell
from tests.integration.scene import make_drop

Pool = asyncpg.Pool
VECTORS = Path(__file__).parent / "vectors" / "events"
SCHEMAS = {
    Path(file.name).stem: json.loads(file.read_text("utf-8"))
    for file in files("couponsvc.outbox").joinpath("schemas").iterdir()
}
DEFINITION = {
    "program_id": "qingdao-2022",
    "template_id": "dining-20",
    "quantity": 3,
    "per_person_limit": 1,
    "opens_at": "2026-10-01T02:00:00.000Z",
    "closes_at": "2026-10-01T03:00:00.000Z",
    "face_value_fen": 2000,
    "min_spend_fen": 6000,
    "valid_for_hours": 48,
}
MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})")
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
FORMATS = jsonschema.FormatChecker()


@FORMATS.checks("date-time", raises=ValueError)
def _is_rfc3339(value: object) -> bool:
    return bool(MOMENT.fullmatch(str(value)) and datetime.fromisoformat(str(value)))


@FORMATS.checks("uri-reference", raises=ValueError)
def _is_uri_reference(value: object) -> bool:
    return bool(value) and str(value).isascii() and str(value).isprintable() and " " not in str(value)


def closed(schema: Any) -> Any:
    """The schema as we keep it ourselves: nothing is sent that it does not name."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    shut = {name: closed(part) for name, part in schema.items()}
    return shut | {"additionalProperties": False} if "properties" in schema else shut


def assert_described(document: dict[str, Any]) -> None:
    schema = closed(SCHEMAS[document["type"]])
    jsonschema.Draft202012Validator(schema, format_checker=FORMATS).validate(document)


async def one_of_each(pool: "Pool[asyncpg.Record]") -> list[Event]:
    """The events of one partner in a ledger in which everything happens that events tell of."""
    await prepare(pool)
    drop = await make_drop(pool, "qingdao-2022-w31-wed-dining-20", quantity=3)
    [second] = await admit(pool, drop, "bank-b")
    await pool.execute("UPDATE drops SET opens_at = $1, closes_at = $2", NOW, NOW + timedelta(hours=1))
    opened = NOW + timedelta(milliseconds=7)
    await commit(pool, drop, [1, second, 1], opened, token='"quoted"\\')
    await tell(pool, drop, "drop.sold_out", {"quantity": 3})
    await tell(pool, drop, "drop.restocked", {"added": 2, "quantity": 5})
    await tell(pool, drop, "drop.paused")
    await tell(pool, drop, "drop.resumed")
    number = await subscribe(pool, 1, EventType.DROP_PAUSED.public)
    await pool.execute("INSERT INTO outbox (type, subscription_no) VALUES ('webhook.test', $1)", number)
    await pool.execute("UPDATE outbox SET occurred_at = $1 WHERE first_seq IS NULL", opened)
    await number_all(pool, NOW + timedelta(hours=1))
    await tell(pool, drop, "drop.defined", DEFINITION)
    await number_all(pool, NOW + timedelta(hours=1))
    await pool.execute("UPDATE drops SET status = 2")
    await tell(pool, drop, "drop.closed")
    await tell(pool, drop, "drop.withdrawn")
    await pool.execute("UPDATE outbox SET partner_no = 1 WHERE type = 'drop.withdrawn'")
    await number_all(pool, NOW + timedelta(hours=1))
    return await EventReader(pool).page(1, 0, 500)


def test_every_kind_has_a_schema_that_is_one_and_no_schema_is_left_over() -> None:
    assert set(SCHEMAS) == {kind.public for kind in EventType}
    for public, schema in SCHEMAS.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["$id"] == f"urn:couponsvc:event:{public}"
        assert schema["$defs"]["data"]["$id"] == schema["properties"]["dataschema"]["const"]


async def test_every_kind_is_sent_as_its_schema_says_and_byte_for_byte_as_it_always_was(
    pool: "Pool[asyncpg.Record]",
) -> None:
    events = await one_of_each(pool)
    assert {event.kind for event in events} == set(EventType)
    for event in events:
        assert_described(json.loads(event.body))
        vector = VECTORS / f"{event.kind.public}.json"
        assert event.body == vector.read_bytes(), vector.name
    assert len(events) == len(list(VECTORS.iterdir()))


@pytest.mark.parametrize("kind", EventType)
def test_the_envelope_is_a_cloud_event(kind: EventType) -> None:
    """CloudEvents 1.0.2: section "Context Attributes" and the JSON format's rules for them."""
    document: dict[str, Any] = json.loads((VECTORS / f"{kind.public}.json").read_bytes())
    attributes = {name: value for name, value in document.items() if name != "data"}
    assert {"id", "source", "specversion", "type"} <= set(attributes)
    assert attributes["specversion"] == "1.0"
    for name, value in attributes.items():
        assert re.fullmatch("[a-z0-9]{1,20}", name)
        assert isinstance(value, str)
        assert value
    assert MOMENT.fullmatch(attributes["time"])
    assert SCHEME.fullmatch(urlsplit(attributes["dataschema"]).scheme), "a URI is absolute"
    assert attributes["datacontenttype"] == "application/json"
    assert list(document)[-1] == "data"


@pytest.mark.parametrize(
    "damage",
    [
        {"time": "2026-10-01T02:00:00Z"},
        {"time": "2026-13-01T02:00:00.000Z"},
        {"sequence": "1"},
        {"id": "evt_0"},
        {"source": "drops"},
        {"subject": "Bank A"},
        {"extra": "1"},
        {"dataschema": "/schemas/couponsvc.voucher.issued.v1.json"},
        {"data": {"drop_id": "qingdao-2022-w31-wed-dining-20", "vouchers": []}},
        {"data": {"drop_id": "qingdao-2022-w31-wed-dining-20", "vouchers": [{}]}},
    ],
    ids=str,
)
def test_a_schema_refuses_what_is_not_so(damage: dict[str, Any]) -> None:
    document = json.loads((VECTORS / f"{EventType.VOUCHER_ISSUED.public}.json").read_bytes())
    assert_described(document)
    with pytest.raises(jsonschema.ValidationError):
        assert_described(document | damage)


async def test_what_operators_do_is_told_as_the_schemas_say(
    settings: Settings, pool: "Pool[asyncpg.Record]", redis: Redis
) -> None:
    """The data of these events is written by the operations themselves."""
    await prepare(pool)
    async with House.open(settings, pool, redis) as house:
        await house.program()
        drop_id = (await house.drop(quantity=5))["drop_id"]
        for action, body in (
            ("pause", None),
            ("resume", None),
            ("restock", {"current_quantity": 5, "add": 3}),
            ("close", None),
        ):
            answer = await house.call("POST", f"/v1/drops/{drop_id}/{action}", body)
            assert answer.status_code < 300, answer.text
            await number_all(pool, datetime.now(UTC))
    partner_no = await pool.fetchval("SELECT min(partner_no) FROM drop_partners")
    documents = [json.loads(event.body) for event in await EventReader(pool).page(partner_no, 0, 500)]
    assert [document["type"].split(".")[2] for document in documents] == [
        "defined", "opened", "paused", "resumed", "restocked", "closed",
    ]  # fmt: skip
    for document in documents:
        assert_described(document)
