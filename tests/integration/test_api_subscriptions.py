"""Managing subscriptions over HTTP, and that what is shown once is what deliveries are signed with."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import structlog
from redis.asyncio import Redis

from couponsvc import limits
from couponsvc.outbox.relay import Relay
from couponsvc.programs import admission
from couponsvc.programs.admission import CredentialRequest
from couponsvc.settings import Settings
from couponsvc.support.webhook_signature import BadWebhookSignature, verify
from tests.integration.house import House, code_of
from tests.integration.scripted_server import Script, answer, says, scripted

ISSUED = "couponsvc.voucher.issued.v1"
TEST = "couponsvc.webhook.test.v1"
URL = "https://8.8.8.8/hook"
OK = says(answer(204, b""))


@pytest.fixture
async def house(
    settings: Settings, pool: "asyncpg.Pool[asyncpg.Record]", redis: Redis
) -> AsyncIterator[House]:
    async with House.open(settings, pool, redis) as opened:
        yield opened


@pytest.fixture
async def workshop(
    settings: Settings, pool: "asyncpg.Pool[asyncpg.Record]", redis: Redis
) -> AsyncIterator[House]:
    """A house in development mode, so that events may be sent to this machine."""
    private = settings.model_copy(update={"webhook_allow_private": True})
    async with House.open(private, pool, redis) as opened:
        yield opened


def body(url: str = URL, **changes: Any) -> dict[str, Any]:
    return {"url": url, "types": [ISSUED], "drop_ids": None, **changes}


async def subscribe(house: House, url: str = URL, *, by: str = "bank-a", **changes: Any) -> dict[str, str]:
    made = await house.call("POST", "/v1/subscriptions", body(url, **changes), by=by)
    assert made.status_code == 201, made.text
    found: dict[str, str] = made.json()
    return found


async def detail(house: House, sent: Any) -> str:
    """What is said of a subscription that is refused as malformed."""
    refused = await house.call("POST", "/v1/subscriptions", sent, by="bank-a")
    assert code_of(refused) == "invalid_request", refused.text
    text: str = refused.json()["detail"]
    return text


async def turn(house: House) -> None:
    """Number and deliver what there is."""
    relay = await Relay.open(house.settings)
    try:
        await relay.run_once()
    finally:
        await relay.close()


def received(script: Script) -> list[tuple[dict[str, str], bytes]]:
    """Headers and body of each request."""
    found = []
    for request in script.requests:
        head, _, content = request.partition(b"\r\n\r\n")
        lines = [line.split(": ", 1) for line in head.decode().split("\r\n")[1:]]
        found.append(({name.lower(): value for name, value in lines}, content))
    return found


async def test_a_subscription_is_made_shown_and_ended(house: House) -> None:
    await house.drop()
    made = await house.call("POST", "/v1/subscriptions", body(drop_ids=["wed"]), by="bank-a")
    assert made.status_code == 201
    assert made.headers["location"] == "/v1/subscriptions/sub_1"
    assert made.headers["cache-control"] == "no-store"
    assert set(made.json()) == {"subscription_id", "secret"}
    shown = (await house.call("GET", "/v1/subscriptions/sub_1", by="bank-a")).json()
    assert {name: shown[name] for name in ("subscription_id", "url", "types", "drop_ids")} == {
        "subscription_id": "sub_1",
        "url": URL,
        "types": [ISSUED],
        "drop_ids": ["wed"],
    }
    assert (shown["disabled_at"], shown["failure_count"], shown["previous_secret_until"]) == (None, 0, None)
    assert (await house.call("GET", "/v1/subscriptions", by="bank-a")).json() == {"subscriptions": [shown]}
    ended = await house.call("DELETE", "/v1/subscriptions/sub_1", by="bank-a")
    assert (ended.status_code, ended.content) == (204, b"")
    assert (
        code_of(await house.call("DELETE", "/v1/subscriptions/sub_1", by="bank-a")) == "unknown_subscription"
    )
    assert (await house.call("GET", "/v1/subscriptions", by="bank-a")).json() == {"subscriptions": []}


async def test_a_secret_is_shown_once_and_never_logged(house: House) -> None:
    with structlog.testing.capture_logs() as logged:
        first = (await subscribe(house))["secret"]
        rotated = await house.call("POST", "/v1/subscriptions/sub_1/rotate-secret", by="bank-a")
    assert rotated.status_code == 200
    assert rotated.headers["cache-control"] == "no-store"
    assert set(rotated.json()) == {"subscription_id", "secret", "previous_secret_until"}
    second = rotated.json()["secret"]
    assert first != second
    shown = [
        (await house.call("GET", path, by="bank-a")).text
        for path in ("/v1/subscriptions", "/v1/subscriptions/sub_1", "/v1/subscriptions/sub_1/deliveries")
    ]
    kept = [str(dict(row)) for row in await house.pool.fetch("SELECT * FROM subscriptions")]
    for secret in (first, second):
        assert not any(secret in text for text in [*shown, *kept, str(logged)])
    until = json.loads(shown[1])["previous_secret_until"]
    assert until == rotated.json()["previous_secret_until"]


PATHS = [
    ("GET", "", None),
    ("POST", "/rotate-secret", None),
    ("POST", "/test", None),
    ("POST", "/redeliver", {"parked": True}),
    ("GET", "/deliveries", None),
    ("DELETE", "", None),
]


async def test_what_is_another_partner_s_is_not_there(house: House) -> None:
    await subscribe(house)
    for name in ("sub_1", "sub_99", "sub_0", "sub_01", "1", "sub_", "sub_-1", "sub_99999999999", "evt_1"):
        for method, path, sent in PATHS:
            found = await house.call(method, f"/v1/subscriptions/{name}{path}", sent, by="bank-b")
            assert code_of(found) == "unknown_subscription", (method, path, name)
    assert (await house.call("GET", "/v1/subscriptions", by="bank-b")).json() == {"subscriptions": []}
    assert (await house.call("GET", "/v1/subscriptions/sub_1", by="bank-a")).status_code == 200


async def test_subscriptions_are_a_partner_s_with_the_scope_read(house: House) -> None:
    grabbing = await admission.create_key(
        house.pool,
        house.services.master_key,
        "test",
        CredentialRequest("partner", "bearer", "bank-a", scopes=frozenset({"grab"})),
    )
    house.tokens["grabbing"] = grabbing.token or ""
    await house.services.authenticator.load()
    for by, words in (
        ("operator", "couponsvc events"),
        ("auditor", "couponsvc events"),
        ("grabbing", "read"),
    ):
        for method, path, sent in [("POST", "", body()), *((m, f"/sub_1{p}", s) for m, p, s in PATHS)]:
            refused = await house.call(method, f"/v1/subscriptions{path}", sent, by=by)
            assert code_of(refused) == "forbidden"
            assert words in refused.json()["detail"]


async def test_a_drop_that_the_partner_does_not_see_is_unknown(house: House) -> None:
    await house.drop("wed")
    for by, drop_ids in (("bank-a", ["wed", "thu"]), ("bank-b", ["wed"])):
        refused = await house.call("POST", "/v1/subscriptions", body(drop_ids=drop_ids), by=by)
        assert code_of(refused) == "unknown_drop"


async def test_the_same_once_more_and_too_many_are_conflicts(house: House) -> None:
    await subscribe(house)
    again = await house.call("POST", "/v1/subscriptions", body(), by="bank-a")
    assert code_of(again) == "conflict"
    assert "sub_1" in again.json()["detail"]
    await subscribe(house, by="bank-b")
    for number in range(limits.SUBSCRIPTIONS_PER_PARTNER_MAX_COUNT - 1):
        await subscribe(house, f"{URL}/{number}")
    full = await house.call("POST", "/v1/subscriptions", body(f"{URL}/more"), by="bank-a")
    assert code_of(full) == "conflict"
    assert "16 subscriptions" in full.json()["detail"]


MALFORMED: list[tuple[Any, str]] = [
    ({}, "url: Field required; types: Field required"),
    (body(secret="whsec_mine"), "secret: Extra inputs are not permitted"),
    (body(types=[]), "types: "),
    (body(types=[ISSUED, ISSUED]), "twice"),
    (
        body(types=["voucher.issued"]),
        "'voucher.issued' is no type; there are: couponsvc.voucher.issued.v1",
    ),
    (body(types=[TEST]), "is no type"),
    (body(types=ISSUED), "types: "),
    (body(drop_ids=[]), "drop_ids: "),
    (body(drop_ids=["Wed"]), "drop_ids.0: "),
    (body(drop_ids=["wed", "wed"]), "twice"),
    (body("http://8.8.8.8/"), "url: Use https"),
    (body("https://127.0.0.1/"), "url: The host is a loopback address"),
    (
        body("https://[::ffff:10.0.0.1]/"),
        "url: The host is an address of a private network carried in IPv6",
    ),
    (body("https://169.254.169.254/latest"), "url: The host is a link-local address"),
    (body("https://localhost/"), "url: The host's name leads to a loopback address"),
    (body("https://user:LEAKED@8.8.8.8/"), "url: Leave user and password out"),
    (body("https://8.8.8.8/#a"), "url: Leave the fragment"),
    (body("https://8.8.8.8:22/"), "url: Use the port 443"),
    (body("https://8.8.8.8/" + "a" * 2_048), "url: String should have at most 2048 characters"),
    (body("https://no-such-name.invalid/"), "url: The host's name "),
]


async def test_a_malformed_subscription_is_told_what_to_correct(house: House) -> None:
    for sent, words in MALFORMED:
        text = await detail(house, sent)
        assert words in text
        assert "LEAKED" not in text
    assert await house.pool.fetchval("SELECT count(*) FROM subscriptions") == 0


async def test_development_may_use_its_own_machine_but_no_metadata(workshop: House) -> None:
    await subscribe(workshop, "http://127.0.0.1:9000/hook")
    await subscribe(workshop, "http://localhost:9000/hook")
    for url in ("http://169.254.169.254/", "http://[::ffff:a9fe:a9fe]/", "http://100.100.100.200/"):
        assert "url: The host is " in await detail(workshop, body(url))


async def test_deliveries_are_signed_with_what_was_shown_also_after_a_rotation(workshop: House) -> None:
    async with scripted(OK) as script:
        await workshop.drop()
        made = await subscribe(workshop, f"{script.url}/hook")
        await workshop.issue("wed", "p1")
        await turn(workshop)
        rotated = (await workshop.call("POST", "/v1/subscriptions/sub_1/rotate-secret", by="bank-a")).json()
        tested = await workshop.call("POST", "/v1/subscriptions/sub_1/test", by="bank-a")
        assert (tested.status_code, tested.json()) == (202, {"subscription_id": "sub_1", "status": "queued"})
        await turn(workshop)
    (issued, issued_body), (test, test_body) = received(script)
    now_s = int(time.time())
    verify([made["secret"]], issued, issued_body, now_s=now_s)
    verify([made["secret"]], test, test_body, now_s=now_s)
    verify([rotated["secret"]], test, test_body, now_s=now_s)
    with pytest.raises(BadWebhookSignature):
        verify([rotated["secret"]], issued, issued_body, now_s=now_s)
    assert json.loads(issued_body)["data"]["vouchers"][0]["person_token"] == "p1"
    assert (json.loads(test_body)["type"], json.loads(test_body)["data"]) == (
        TEST,
        {"subscription_id": "sub_1"},
    )

    page = (await workshop.call("GET", "/v1/subscriptions/sub_1/deliveries", by="bank-a")).json()
    assert [(one["event_id"], one["state"], one["type"]) for one in page["deliveries"]] == [
        (json.loads(test_body)["id"], "delivered", TEST),
        (json.loads(issued_body)["id"], "delivered", ISSUED),
    ]
    attempt = page["deliveries"][0]["attempts"][0]
    assert (attempt["status"], attempt["outcome"], attempt["error"]) == (204, "delivered", "")
    assert page["next"] is None


async def test_what_failed_is_seen_and_sent_again_with_the_same_bytes(workshop: House) -> None:
    failing = says(answer(500, b"LEAKED"))
    async with scripted(failing, OK) as script:
        await workshop.drop()
        await subscribe(workshop, f"{script.url}/hook")
        await workshop.issue("wed", "p1", "p2")
        await turn(workshop)
        path = "/v1/subscriptions/sub_1/deliveries"
        listed = await workshop.call("GET", f"{path}?state=waiting", by="bank-a")
        assert "LEAKED" not in listed.text
        (waiting,) = listed.json()["deliveries"]
        assert waiting["attempts"][0]["error"] == "the receiver answered 500"
        assert waiting["next_attempt_at"] > waiting["attempts"][0]["attempted_at"]

        again = "/v1/subscriptions/sub_1/redeliver"
        asked = await workshop.call("POST", again, {"event_ids": [waiting["event_id"]]}, by="bank-a")
        assert (asked.status_code, asked.json()) == (202, {"queued": 1})
        await turn(workshop)
        span = {"from": "2020-01-01T00:00:00Z", "to": "2199-01-01T00:00:00Z"}
        assert (await workshop.call("POST", again, span, by="bank-a")).json() == {"queued": 1}
        await turn(workshop)
        assert (await workshop.call("POST", again, {"parked": True}, by="bank-a")).json() == {"queued": 0}
    sent = received(script)
    assert len(sent) == 3
    assert len({(headers["webhook-id"], content) for headers, content in sent}) == 1
    (delivered,) = (await workshop.call("GET", path, by="bank-a")).json()["deliveries"]
    assert [attempt["outcome"] for attempt in delivered["attempts"]] == ["delivered", "delivered", "failed"]


AMBIGUOUS: list[Any] = [
    {},
    {"parked": False},
    {"parked": None},
    {"event_ids": []},
    {"event_ids": ["17"]},
    {"event_ids": ["evt_0"]},
    {"event_ids": ["evt_1"] * 1_001},
    {"event_ids": ["evt_1"], "parked": True},
    {"from": "2026-10-01T00:00:00Z"},
    {"to": "2026-10-01T00:00:00Z"},
    {"since": "2026-10-01T00:00:00Z", "until": "2026-10-02T00:00:00Z"},
    {"from": "2026-10-01T00:00:00", "to": "2026-10-02T00:00:00"},
    {"from": "2026-10-02T00:00:00Z", "to": "2026-10-02T00:00:00Z"},
    {"from": "2026-10-01T00:00:00Z", "to": "2026-10-02T00:00:00Z", "parked": True},
]


async def test_asking_again_says_which_in_one_way(house: House) -> None:
    await subscribe(house)
    for sent in AMBIGUOUS:
        refused = await house.call("POST", "/v1/subscriptions/sub_1/redeliver", sent, by="bank-a")
        assert code_of(refused) == "invalid_request", sent


async def test_an_event_that_is_not_the_partner_s_is_unknown(house: House) -> None:
    await subscribe(house)
    for name in ("evt_1", "evt_9999999999999999999"):
        sent = {"event_ids": [name]}
        refused = await house.call("POST", "/v1/subscriptions/sub_1/redeliver", sent, by="bank-a")
        assert code_of(refused) == "unknown_event"
        assert name in refused.json()["detail"]


async def test_a_subscription_whose_receiver_said_gone_says_so(house: House) -> None:
    await subscribe(house)
    await house.pool.execute("UPDATE subscriptions SET disabled_at = now()")
    for path, sent in (("test", None), ("redeliver", {"parked": True})):
        refused = await house.call("POST", f"/v1/subscriptions/sub_1/{path}", sent, by="bank-a")
        assert code_of(refused) == "conflict"
        assert "410" in refused.json()["detail"]
    assert (await house.call("GET", "/v1/subscriptions/sub_1", by="bank-a")).json()["disabled_at"] is not None
    await subscribe(house)


async def test_deliveries_are_asked_for_in_words_that_there_are(house: House) -> None:
    await subscribe(house)
    for query in ("state=sent", "before=17", "limit=0", "limit=201", "limit=1_0"):
        refused = await house.call("GET", f"/v1/subscriptions/sub_1/deliveries?{query}", by="bank-a")
        assert code_of(refused) == "invalid_request", query


async def test_deliveries_come_in_pages(workshop: House) -> None:
    async with scripted(OK) as script:
        await subscribe(workshop, script.url)
        for _ in range(5):
            await workshop.call("POST", "/v1/subscriptions/sub_1/test", by="bank-a")
        await turn(workshop)
    seen: list[str] = []
    query = "limit=2"
    while query:
        path = f"/v1/subscriptions/sub_1/deliveries?{query}"
        page = (await workshop.call("GET", path, by="bank-a")).json()
        seen += [one["event_id"] for one in page["deliveries"]]
        query = f"limit=2&before={page['next']}" if page["next"] else ""
    assert seen == [f"evt_{number}" for number in range(5, 0, -1)]


async def test_two_requests_for_the_same_make_one(house: House) -> None:
    answers = await asyncio.gather(
        *(house.call("POST", "/v1/subscriptions", body(), by="bank-a") for _ in range(4))
    )
    assert sorted(made.status_code for made in answers) == [201, 409, 409, 409]
