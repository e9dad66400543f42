"""Logs: one JSON object a line, request id in each, and nothing in them that must not be told."""

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from couponsvc.support import logs

CANARIES = {
    "person_token": "canary-person",
    "out_request_no": "canary-number",
    "secret": "canary-secret",
    "token": "canary-token",
    "Authorization": "Bearer canary-bearer",
    "signature": "sig1=:canary-signature:",
    "Signature-Input": "canary-input",
    "master_key": "canary-master",
    "postgres_dsn": "postgresql://u:canary-dsn@h/d",
}


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    yield
    root.handlers[:], root.level = before
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_line_says_when_how_bad_what_and_for_which_request(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "info")
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        logs.get("gate").info("gate opened", run_id="abc")
    (line,) = lines(capsys)
    assert (line["level"], line["event"], line["request_id"]) == ("info", "gate opened", "r-1")
    assert (line["logger"], line["run_id"]) == ("gate", "abc")
    assert line["timestamp"].endswith("Z")
    assert isinstance(line["process"], int)


def test_requests_at_the_same_time_keep_their_ids(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "info")

    async def request(number: int) -> None:
        with structlog.contextvars.bound_contextvars(request_id=f"r-{number}"):
            await asyncio.sleep(0)
            logs.get("api").info("served", number=number)

    async def all_requests() -> None:
        await asyncio.gather(*(request(number) for number in range(20)))

    asyncio.run(all_requests())
    assert all(line["request_id"] == f"r-{line['number']}" for line in lines(capsys))


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_planted_canaries_never_appear(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(log_format, "debug")
    log = logs.get("test")
    log.info("flat", **CANARIES)
    log.info("nested", context={"deep": [CANARIES]}, headers=CANARIES)
    log.warning("in text", error=f"refused {CANARIES!r}")
    log.info("bytes", body=b"canary-body", raw=b'{"person_token":"canary-person"}')
    logging.getLogger("asyncpg").warning("Authorization: Bearer canary-bearer")
    logging.getLogger("redis").warning("cannot reach redis://:canary-dsn@127.0.0.1:6379/0")
    logging.getLogger("uvicorn.access").info('"GET /v1/vouchers/canary-path HTTP/1.1" 200')
    logging.getLogger("uvicorn.error").info("token=canary-token&secret=%s", "canary-secret")
    try:
        json.loads('{"person_token": "canary-person"', object_pairs_hook=dict)
    except ValueError:
        log.exception("failed")
    written = capsys.readouterr().out
    assert "canary" not in written, [line for line in written.splitlines() if "canary" in line]
    assert "JSONDecodeError" in written


def test_a_row_that_postgres_quotes_is_masked(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "info")
    error = 'duplicate key\nDETAIL:  Key (partner_no, person_token)=(1, "p-1") already exists.'
    logs.get("ledger").error("refused", error=error)
    (line,) = lines(capsys)
    assert "p-1" not in line["error"]
    assert "duplicate key" in line["error"]


def test_what_libraries_log_comes_out_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "info")
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 7)
    (line,) = lines(capsys)
    assert (line["event"], line["logger"]) == ("Started server process [7]", "uvicorn.error")


def test_that_postgres_is_away_is_not_told_with_a_stack_by_every_pool(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("json", "info")
    logging.getLogger("asyncpg.pool").warning("Failed to restore the pool connection floor; retrying")
    logging.getLogger("asyncpg").warning("something else")
    assert [line["event"] for line in lines(capsys)] == ["something else"]


def test_lines_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "warning")
    logs.get("test").info("quiet")
    logs.get("test").warning("loud")
    assert [line["event"] for line in lines(capsys)] == ["loud"]


def test_an_exception_shows_no_local_variables(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json", "info")

    def fail(hidden: str) -> None:
        raise RuntimeError(f"about {len(hidden)} characters")

    kept = "canary-local"
    try:
        fail(kept)
    except RuntimeError:
        logs.get("test").exception("failed")
    (line,) = lines(capsys)
    assert "RuntimeError: about 12 characters" in line["exception"]
    assert kept not in line["exception"]
