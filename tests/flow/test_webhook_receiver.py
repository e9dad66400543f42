"""The receiver of docs/webhooks.md, as it stands there: what it accepts, refuses, and keeps once."""

import asyncio
import json
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from standardwebhooks import Webhook

from couponsvc import limits
from couponsvc.outbox import retries
from tests.contract.test_webhook_vectors import VECTORS
from tests.flow.webhook_guide import GUIDE, OTHER, RECEIVER, SECRET, Receiver, receiving

KINDS = [
    "good",
    "two signatures, one of them good",
    "another secret",
    "altered body",
    "another id",
    "another moment",
    "too old",
    "too early",
    "no signature",
    "no headers",
    "another version",
    "not ASCII",
]


def event(number: int, *seqs: int) -> bytes:
    vouchers = [{"voucher_id": f"vch_1_{n}", "person_token": f'p"{n}', "code": f"C{n}"} for n in seqs]
    data = {"drop_id": "d1", "vouchers": vouchers} if seqs else {"drop_id": "d1"}
    return json.dumps({"id": f"evt_{number}", "data": data}, separators=(",", ":")).encode()


def signed(number: int, body: bytes, secret: str = SECRET, age_s: int = 0) -> dict[str, str]:
    sent_at = datetime.now(UTC) - timedelta(seconds=age_s)
    return {
        "webhook-id": f"evt_{number}",
        "webhook-timestamp": str(int(sent_at.timestamp())),
        "webhook-signature": Webhook(secret).sign(f"evt_{number}", sent_at, body.decode()),
    }


def altered(kind: str, body: bytes) -> tuple[bytes, dict[str, str]]:
    headers = signed(7, body)
    mac = headers["webhook-signature"]
    changes: dict[str, dict[str, str]] = {
        "two signatures, one of them good": {"webhook-signature": f"v1,AAAA v1a,x {mac}"},
        "another secret": signed(7, body, OTHER),
        "another id": {"webhook-id": "evt_8"},
        "another moment": {"webhook-timestamp": str(int(headers["webhook-timestamp"]) + 1)},
        "too old": signed(7, body, age_s=310),
        "too early": signed(7, body, age_s=-310),
        "no signature": {"webhook-signature": ""},
        "another version": {"webhook-signature": mac.replace("v1,", "v2,")},
        "not ASCII": {"webhook-signature": "v1,\u00e4\u00b2"},
    }
    if kind == "no headers":
        return body, {}
    return body + b" " if kind == "altered body" else body, headers | changes.get(kind, {})


async def test_it_accepts_what_is_genuine_and_refuses_everything_else(tmp_path: Path) -> None:
    async with receiving(tmp_path, SECRET) as receiver:
        for kind in KINDS:
            good = "good" in kind
            body, headers = altered(kind, event(7, 1))
            assert (kind, await receiver.post(body, headers)) == (kind, 204 if good else 400)
            assert receiver.events() == {"evt_7"}, kind  # the first was good
        assert receiver.vouchers() == {("vch_1_1", 'p"1', "C1")}


async def test_it_keeps_each_event_once_however_often_and_how_much_at_once_it_comes(tmp_path: Path) -> None:
    async with receiving(tmp_path, SECRET) as receiver:

        async def send(number: int) -> int:
            body = event(number, *range(number * 10, number * 10 + 3))
            return await receiver.post(body, signed(number, body))

        answers = await asyncio.gather(*(send(n) for n in [*range(1, 9)] * 3))
        assert set(answers) == {204}
        assert receiver.events() == {f"evt_{n}" for n in range(1, 9)}
        assert len(receiver.vouchers()) == 24


async def test_what_it_answered_survives_its_kill(tmp_path: Path) -> None:
    async with receiving(tmp_path, SECRET) as receiver:
        for number in (1, 2):
            body = event(number, number)
            assert await receiver.post(body, signed(number, body)) == 204
            await receiver.start(SECRET)  # after a kill -9
            assert await receiver.post(body, signed(number, body)) == 204
        assert len(receiver.vouchers()) == 2


async def test_what_it_could_not_commit_is_not_answered_and_not_half_kept(tmp_path: Path) -> None:
    async with receiving(tmp_path, SECRET) as receiver:
        broken = b'{"id":"evt_1","data":{"vouchers":[{"voucher_id":"vch_1_1"}]}}'  # a member is missing
        assert await _unanswered(receiver, broken)
        assert receiver.events() == set()
        whole = event(1, 1)
        assert await receiver.post(whole, signed(1, whole)) == 204
        assert receiver.events() == {"evt_1"}


async def _unanswered(receiver: Receiver, body: bytes) -> bool:
    try:
        await receiver.post(body, signed(1, body))
    except httpx2.TransportError:
        return True
    return False


async def test_two_secrets_are_live_while_one_is_replaced(tmp_path: Path) -> None:
    async with receiving(tmp_path, OTHER, SECRET) as receiver:
        for number, secret in enumerate((SECRET, OTHER), start=1):
            body = event(number)
            assert await receiver.post(body, signed(number, body, secret)) == 204


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_its_verdict_on_every_vector_is_ours(vector: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["receiver.py", "0", ":memory:"])
    monkeypatch.setenv("WEBHOOK_SECRETS", " ".join(vector["secrets"]))
    names: dict[str, Any] = {}
    exec(RECEIVER.split("\n\n\nwith ")[0], names)  # noqa: S102 - all but what serves
    names["time"] = SimpleNamespace(time=lambda: float(vector["now_s"]))
    receiver = object.__new__(names["Receiver"])
    receiver.headers = vector["headers"]
    assert receiver.is_genuine(vector["body"].encode()) == vector["genuine"]


def test_it_is_as_short_as_the_guide_says() -> None:
    imported = re.findall(r"^import (.*)$", RECEIVER, re.MULTILINE)
    assert imported == ["base64, contextlib, hmac, http.server, json, os, sqlite3, sys, time"]
    lines = [line for line in RECEIVER.splitlines() if line.strip() and not line.startswith("import")]
    assert len(lines) <= 31


def test_the_ladder_is_the_one_that_relays_climb() -> None:
    seconds = {"none": 0, "s": 1, "min": 60, "h": 3600}
    rows = re.findall(r"^\| (\d+) \| (?:(\d+) )?(none|s|min|h) \|$", GUIDE, re.MULTILINE)
    pauses = [int(number or 0) * seconds[unit] for _, number, unit in rows]
    assert [int(attempt) for attempt, _, _ in rows] == list(range(1, len(pauses) + 1))
    assert pauses == [0, *limits.WEBHOOK_RETRY_DELAYS_S]
    held_s = f"after {retries.HOLD_FIRST_S} s, then after twice as long each time"
    hours = sum(limits.WEBHOOK_RETRY_DELAYS_S) / 3600
    for claim in (
        f"{hours:.1f} hours after the first",
        f"each up to {limits.WEBHOOK_RETRY_JITTER:.0%} longer",
        f"within {limits.WEBHOOK_TIMEOUT_S:.0f} seconds",
        f"up to {limits.DELIVERIES_PER_ENDPOINT_MAX_COUNT} at once",
        f"for {limits.WEBHOOK_ROTATION_S // 3600} hours every delivery is signed with both",
        f"1 to {limits.EVENT_VOUCHERS_MAX_COUNT} vouchers",
        f"held back for up to {limits.FEED_WAIT_MAX_S} s",
        f"After {retries.FAILING_FROM_COUNT} failures in a row",
        f"{held_s}, up to {retries.HOLD_MAX_S // 60} min",
        f"or you have {limits.SUBSCRIPTIONS_PER_PARTNER_MAX_COUNT}",
    ):
        assert claim in " ".join(GUIDE.split()), claim
