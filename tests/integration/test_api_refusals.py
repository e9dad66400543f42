"""Bad input and absent servers: each gets a clear problem, and nothing is changed."""

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from couponsvc import limits
from couponsvc.settings import Settings
from couponsvc.support.redis_client import open_redis
from tests.integration.house import HOUR, House, code_of, drop, template
from tests.servers import PostgresServer, RedisServer


@pytest.fixture
async def house(
    settings: Settings, pool: "asyncpg.Pool[asyncpg.Record]", redis: Redis
) -> AsyncIterator[House]:
    async with House.open(settings, pool, redis) as opened:
        yield opened


MALFORMED = {
    "empty": b"",
    "not json": b"{",
    "not utf-8": b'{"name":"\xff"}',
    "byte order mark": b'\xef\xbb\xbf{"name":"x"}',
    "a list": b"[]",
    "a string": b'"x"',
    "null": b"null",
    "duplicate key": b'{"name":"x","name":"y"}',
    "escaped duplicate key": b'{"name":"x","n\\u0061me":"y"}',
    "NaN": b'{"name":"x","region":NaN}',
    "Infinity": b'{"name":-Infinity}',
    "unknown field": b'{"name":"x","colour":"red"}',
    "missing field": b'{"region":"370200"}',
    "wrong type": b'{"name":1}',
    "null where text belongs": b'{"name":null}',
    "raw control character": b'{"name":"x\n"}',
    "escaped control character": b'{"name":"x\\u0000"}',
    "lone surrogate": b'{"name":"x\\ud800"}',
    "over-long": b'{"name":"' + b"x" * 201 + b'"}',
    "nothing in it": b'{"name":""}',
    "bad region": b'{"name":"x","region":"37020"}',
    "deeply nested": b"[" * 100_000,
    "number with 5,000 digits": b'{"name":' + b"1" * 5_000 + b"}",
    "trailing data": b'{"name":"x"}{}',
}


async def test_malformed_bodies_are_refused(house: House) -> None:
    for kind, body in MALFORMED.items():
        answer = await house.call("PUT", "/v1/programs/test", content=body)
        assert code_of(answer) == "invalid_request", kind
        assert answer.json()["detail"], kind
    assert await house.pool.fetchval("SELECT count(*) FROM programs") == 0


WRONG_DROPS: dict[str, dict[str, Any]] = {
    "quantity as text": {"quantity": "10"},
    "quantity as fraction": {"quantity": 10.0},
    "quantity as truth": {"quantity": True},
    "quantity of nothing": {"quantity": 0},
    "quantity past Postgres' integer": {"quantity": 2**31},
    "limit above the bound": {"per_person_limit": 17},
    "moment without offset": {"opens_at": "2026-10-01T02:00:00"},
    "moment as number": {"opens_at": 1_790_000_000},
    "moment without time": {"opens_at": "2026-10-01"},
    "moment that is none": {"opens_at": "2026-02-30T00:00:00Z"},
    "moment outside of time": {"opens_at": "0001-01-01T00:00:00+08:00"},
    "window backwards": {"opens_at": HOUR, "closes_at": -HOUR},
    "slug in capitals": {"program_id": "Test"},
    "slug with a line break": {"program_id": "test\n"},
    "partner twice": {"partners": ["bank-a", "bank-a"]},
    "partners as text": {"partners": "bank-a"},
}


async def test_a_wrong_field_of_a_drop_is_named(house: House) -> None:
    await house.program()
    for kind, wrong in WRONG_DROPS.items():
        answer = await house.call("PUT", "/v1/drops/wed", drop(**wrong))
        assert code_of(answer) == "invalid_request", kind
        named = answer.json()["detail"]
        assert any(field.rstrip("s") in named for field in wrong), (kind, named)
    assert await house.pool.fetchval("SELECT count(*) FROM drops") == 0


async def test_a_detail_never_repeats_what_was_sent(house: House) -> None:
    answer = await house.call("PUT", "/v1/programs/test", {"name": 12345678, "region": "canary"})
    assert "12345678" not in answer.text
    assert "canary" not in answer.text


async def test_a_body_over_the_limit_is_refused_also_in_chunks(house: House) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(limits.BODY_MAX_BYTES // 65_536 + 1):
            yield b"x" * 65_536

    for content in (b"x" * (limits.BODY_MAX_BYTES + 1), chunks()):
        answer = await house.call("PUT", "/v1/programs/test", content=content)
        assert code_of(answer) == "body_too_large"
    largest = await house.call("PUT", "/v1/programs/test", content=b" " * limits.BODY_MAX_BYTES)
    assert code_of(largest) == "invalid_request"


async def test_unknown_paths_and_methods_are_problems(house: House) -> None:
    assert code_of(await house.call("GET", "/v1/nothing")) == "not_found"
    assert code_of(await house.call("GET", "/nothing", by=None)) == "not_found"
    assert code_of(await house.call("GET", "/v1/drops/")) == "not_found"
    refused = await house.call("DELETE", "/v1/drops/wed")
    assert code_of(refused) == "method_not_allowed"
    assert refused.headers["allow"] == "GET, PUT"
    assert (await house.call("GET", "/v1/drops/wed/grabs")).headers["allow"] == "POST"


async def test_names_that_are_no_slugs_are_refused(house: House) -> None:
    for name in ("A", "a", "-aa", "a_b", "x" * 64, "a%0Ab", "%F0%9F%8E%AB"):
        assert code_of(await house.call("PUT", f"/v1/programs/{name}", {"name": "x"})) == "invalid_request"


async def test_no_character_of_a_query_reaches_postgres_unread(house: House) -> None:
    for path in (
        "/v1/drops?after=%00",
        "/v1/programs?after=a%00",
        "/v1/drops?program_id=%00",
        "/v1/drops?limit=1_0",
    ):
        assert code_of(await house.call("GET", path)) == "invalid_request", path
    for path in ("/v1/vouchers?drop_id=wed&person_token=%00", "/v1/drops/wed/grabs/a%00", "/v1/drops/%00"):
        assert code_of(await house.call("GET", path)) == "invalid_request", path
    assert code_of(await house.call("GET", "/v1/vouchers/vch_1_%00")) == "unknown_voucher"


async def test_the_request_id_is_echoed_or_made(house: House) -> None:
    given = await house.call("GET", "/livez", by=None, headers={"x-request-id": "abc-123"})
    assert given.headers["x-request-id"] == "abc-123"
    for bad in ("x" * 129, "a b", ""):
        made = await house.call("GET", "/livez", by=None, headers={"x-request-id": bad})
        assert made.headers["x-request-id"] not in {bad, ""}
    refused = await house.call("GET", "/v1/drops", by=None, headers={"x-request-id": "abc-123"})
    assert refused.headers["x-request-id"] == "abc-123"


async def test_an_unforeseen_error_tells_no_internals(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    await house.program()
    await house.pool.execute(
        "ALTER TABLE operations ADD CONSTRAINT planted CHECK (action = 'none') NOT VALID"
    )
    answer = await house.call("PUT", "/v1/programs/other", {"name": "x"})
    assert code_of(answer) == "internal"
    assert answer.status_code == 500
    for word in ("planted", "INSERT", "Traceback", "asyncpg"):
        assert word not in answer.text
    assert (await house.call("GET", "/v1/programs/other")).status_code == 404
    capsys.readouterr()


async def test_while_redis_is_away_changes_are_refused_and_look_ups_still_answer(
    house: House, redis_server: RedisServer
) -> None:
    await house.drop()
    await house.issue("wed", "p1")
    redis_server.kill()
    assert code_of(await house.call("GET", "/v1/drops/wed")) == "gate_unavailable"
    assert code_of(await house.call("PUT", "/v1/drops/thu", drop())) == "gate_unavailable"
    assert await house.pool.fetchval("SELECT count(*) FROM drops") == 1
    assert (await house.call("GET", "/v1/drops/wed/grabs/n-p1", by="bank-a")).status_code == 200
    assert code_of(await house.call("GET", "/v1/drops/wed/grabs/n-p2", by="bank-a")) == "gate_unavailable"
    assert (await house.call("GET", "/v1/drops")).status_code == 200
    paused = await house.call("POST", "/v1/drops/wed/pause")
    assert code_of(paused) == "gate_unavailable"
    assert "recorded" in paused.json()["detail"]
    redis_server.ensure_running()


async def test_a_pause_recorded_without_redis_reaches_the_gate_when_asked_again(house: House) -> None:
    await house.drop()
    away = open_redis("redis://127.0.0.1:1")
    whole, house.app.state.services = house.services, _with_redis(house, away)
    assert code_of(await house.call("POST", "/v1/drops/wed/pause")) == "gate_unavailable"
    house.app.state.services = whole
    assert await house.grant("wed", "p1") == "G"
    assert (await house.call("POST", "/v1/drops/wed/pause")).json()["state"] == "paused"
    assert await house.grant("wed", "p2") == "Z"
    await away.aclose()


async def test_while_postgres_is_away_the_ledger_is_unavailable(
    house: House, postgres_server: PostgresServer
) -> None:
    await house.drop()
    postgres_server.engine.stop()
    for method, path, body in (
        ("GET", "/v1/drops/wed", None),
        ("PUT", "/v1/drops/wed", drop()),
        ("PUT", "/v1/programs/test/templates/dining-20", template()),
        ("GET", "/v1/vouchers/vch_1_1", None),
    ):
        assert code_of(await house.call(method, path, body)) == "ledger_unavailable"
    ready = await house.call("GET", "/readyz", by=None)
    assert ready.json()["missing"] == ["postgres"]
    postgres_server.ensure_running()


def _with_redis(house: House, redis: Redis) -> Any:
    changed = object.__new__(type(house.services))
    for name in (
        "settings",
        "pool",
        "authenticator",
        "catalog",
        "gate_closed_because",
        "pending",
        "master_key",
    ):
        object.__setattr__(changed, name, getattr(house.services, name))
    object.__setattr__(changed, "redis", redis)
    return changed
