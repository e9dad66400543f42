"""Signed requests to everything but the grab; and what is logged of any request."""

import base64
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest
import structlog
from redis.asyncio import Redis

from couponsvc.programs import admission
from couponsvc.programs.admission import CredentialRequest
from couponsvc.settings import Settings
from couponsvc.support import logs
from couponsvc.support.signing import HmacKey, sign
from tests.integration.house import Answer, House, code_of


@pytest.fixture
async def house(
    settings: Settings, pool: "asyncpg.Pool[asyncpg.Record]", redis: Redis
) -> AsyncIterator[House]:
    async with House.open(settings, pool, redis) as opened:
        yield opened


@pytest.fixture
async def partner_key(house: House) -> HmacKey:
    return await new_key(house, CredentialRequest("partner", "hmac-sha256", "bank-a"))


@pytest.fixture
async def operator_key(house: House) -> HmacKey:
    return await new_key(house, CredentialRequest("operator", "hmac-sha256"))


async def new_key(house: House, request: CredentialRequest) -> HmacKey:
    made = await admission.create_key(house.pool, house.services.master_key, "test", request)
    assert made.secret is not None
    house.tokens[f"secret of {made.key_id}"] = made.secret
    return HmacKey(made.key_id, base64.b64decode(made.secret))


async def send(
    house: House,
    key: HmacKey,
    method: str,
    target: str,
    body: bytes = b"",
    *,
    sent: tuple[str, bytes] | None = None,
    skew_s: int = 0,
) -> Answer:
    """Sign a request; `sent` is what is sent in place of the signed target and body."""
    path, _, query = target.partition("?")
    signed = sign(
        key, method.encode(), path.encode(), query.encode(), body, created_s=int(time.time()) + skew_s
    )
    sent_target, sent_body = sent or (target, body)
    headers = {name.decode(): value.decode() for name, value in signed}
    return await house.call(method, sent_target, content=sent_body or None, by=None, headers=headers)


async def test_a_partner_reads_with_a_signature(house: House, partner_key: HmacKey) -> None:
    await house.drop()
    await house.issue("wed", "p1")
    found = await send(house, partner_key, "GET", "/v1/vouchers?drop_id=wed&person_token=p1")
    assert [voucher["seq"] for voucher in found.json()["vouchers"]] == [1]
    assert (await send(house, partner_key, "GET", "/v1/drops/wed/grabs/n%2Dp1")).status_code == 200


async def test_a_signed_body_is_read_after_it_was_proven(house: House, operator_key: HmacKey) -> None:
    body = json.dumps({"name": "项目"}, ensure_ascii=False).encode()
    assert (await send(house, operator_key, "PUT", "/v1/programs/test", body)).status_code == 201


async def test_what_was_altered_on_the_way_is_refused(house: House, operator_key: HmacKey) -> None:
    body = b'{"name":"x"}'
    altered: dict[str, tuple[str, bytes]] = {
        "body": ("/v1/programs/test", b'{"name":"y"}'),
        "body dropped": ("/v1/programs/test", b""),
        "path": ("/v1/programs/other", body),
        "query": ("/v1/programs/test?a=b", body),
    }
    for what, sent in altered.items():
        answer = await send(house, operator_key, "PUT", "/v1/programs/test", body, sent=sent)
        assert code_of(answer) == "unauthenticated", what
    for skew_s in (-400, 400):
        answer = await send(house, operator_key, "PUT", "/v1/programs/test", body, skew_s=skew_s)
        assert code_of(answer) == "unauthenticated"
    assert await house.pool.fetchval("SELECT count(*) FROM programs") == 0


@pytest.fixture
def json_logs() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    logs.configure("json", "debug")
    yield
    root.handlers[:], root.level = before
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


async def test_no_log_line_names_a_person_a_secret_or_a_token(
    house: House,
    partner_key: HmacKey,
    json_logs: None,  # noqa: ARG001 - before the fixture below it
    capsys: pytest.CaptureFixture[str],
) -> None:
    logging.getLogger().handlers[0].setStream(capture_of(capsys))  # type: ignore[attr-defined]
    await house.drop()
    await house.issue("wed", "canary-person")
    await send(house, partner_key, "GET", "/v1/vouchers?drop_id=wed&person_token=canary-person")
    await send(house, partner_key, "GET", "/v1/drops/wed/grabs/n-canary-person")
    await house.call("GET", "/v1/drops", by=None, headers={"authorization": "Bearer canary-token"})
    await house.pool.execute("ALTER TABLE vouchers RENAME COLUMN person_token TO gone")
    failed = await send(house, partner_key, "GET", "/v1/vouchers?drop_id=wed&person_token=canary-person")
    assert code_of(failed) == "internal"
    await house.pool.execute("ALTER TABLE operations ADD CONSTRAINT planted CHECK (subject <> 'canary-name')")
    await house.call("PUT", "/v1/programs/canary-name", {"name": "canary-title"})
    written = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    failures = [line for line in written if line["event"] == "a request failed"]
    assert len(failures) == 2
    assert all(line["request_id"] and "exception" in line for line in failures)
    text = json.dumps(written)
    secrets = [*house.tokens.values(), house.settings.master_key.get_secret_value()]
    for planted in ("canary-person", "canary-token", "canary-title", *secrets):
        assert planted not in text


def capture_of(_capsys: pytest.CaptureFixture[str]) -> Any:
    import sys  # noqa: PLC0415 - the stream that pytest put in place for this test

    return sys.stdout
