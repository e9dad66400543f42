"""The partner's clients on the wire, blocking and asynchronous: the same calls, the same behaviour."""

import asyncio
import base64
import contextlib
import inspect
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from couponsvc.client import (
    AnswerLost,
    ApiRefused,
    AsyncPartnerClient,
    Credentials,
    CredentialsError,
    Event,
    PartnerClient,
    Retries,
    Unreachable,
)
from couponsvc.support.signing import Ed25519Key, Ed25519SigningKey, HmacKey, VerifyingKey, verify
from tests.integration.scripted_server import (
    Reaction,
    answer,
    hangs_up,
    is_silent,
    problem,
    says,
    scripted,
)
from tests.integration.tls_authority import Authority

SECRET = base64.b64encode(b"s" * 32).decode()
KEY = HmacKey("k-1", b"s" * 32)
QUICK = Retries(attempts_max_count=4, pause_s=0.001, pause_max_s=0.002)
VOUCHER = (
    b'{"voucher_id":"vch_1_1","drop_id":"d1","seq":1,"code":"C","person_token":"p","out_request_no":"n",'
    b'"status":"issued","face_value_fen":2000,"min_spend_fen":0,"issued_at":"a","valid_from":"b",'
    b'"valid_until":"c"}'
)


@dataclass
class Caller:
    """Either client, called in the same way."""

    client: PartnerClient | AsyncPartnerClient

    async def call(self, name: str, *args: Any, **named: Any) -> Any:
        method = getattr(self.client, name)
        if isinstance(self.client, AsyncPartnerClient):
            return await method(*args, **named)
        return await asyncio.to_thread(method, *args, **named)

    async def events(self, count: int, **named: Any) -> list[tuple[str, Event]]:
        """The first `count` of the feed, or all that there are."""
        client = self.client
        if isinstance(client, AsyncPartnerClient):
            found = []
            async for one in client.events(**named):
                found.append(one)
                if len(found) == count:
                    break
            return found
        return await asyncio.to_thread(lambda: list(islice(client.events(**named), count)))


@contextlib.asynccontextmanager
async def calling(kind: str, url: str, **options: Any) -> AsyncIterator[Caller]:
    options.setdefault("retries", QUICK)
    options.setdefault("timeout_s", 5.0)
    if kind == "blocking":
        with PartnerClient(url, "k-1", SECRET, **options) as client:
            yield Caller(client)
    else:
        async with AsyncPartnerClient(url, "k-1", SECRET, **options) as client:
            yield Caller(client)


@pytest.fixture(params=["blocking", "asynchronous"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def verified(request: bytes, key: VerifyingKey = KEY) -> str:
    head, _, body = request.partition(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    method, target, _ = line.split(b" ")
    path, _, query = target.partition(b"?")
    headers = [(name.lower(), value) for name, _, value in (field.partition(b": ") for field in fields)]
    return verify(method.decode(), path, query, headers, body, {key.key_id: key}.get, time.time())


def page(*numbers: int, after: str) -> bytes:
    events = ",".join(
        f'{{"specversion":"1.0","id":"evt_{n}","source":"/x","type":"t","time":"t","data":{{}}}}'
        for n in numbers
    )
    return answer(200, f'{{"events":[{events}],"next":"{after}"}}'.encode())


@pytest.mark.parametrize(
    "fault",
    [hangs_up, is_silent, says(problem(503, "overloaded", retryable=True)), says(answer(502, b"<html>"))],
    ids=["hang-up", "silence", "503", "a proxy's page"],
)
async def test_a_grab_survives_a_fault_with_the_same_number(kind: str, fault: Reaction) -> None:
    async with (
        scripted(fault, says(answer(200, VOUCHER))) as script,
        calling(kind, script.url, timeout_s=0.3) as caller,
    ):
        found = await caller.call("grab", "d1", "p", "n", channel="app", region="370200")
    assert (found.outcome, found.voucher.voucher_id, found.body) == ("repeated", "vch_1_1", VOUCHER)
    bodies = [request.partition(b"\r\n\r\n")[2] for request in script.requests]
    assert bodies == [b'{"person_token":"p","out_request_no":"n","channel":"app","region":"370200"}'] * 2


async def test_a_pending_grab_is_looked_up(kind: str) -> None:
    pending = says(answer(202, b'{"status":"pending"}'))
    async with (
        scripted(pending, pending, says(answer(200, VOUCHER))) as script,
        calling(kind, script.url) as caller,
    ):
        assert (await caller.call("grab", "d1", "p", "n|1")).outcome == "repeated"
    look_up = "GET /v1/drops/d1/grabs/n%7C1"
    assert script.request_lines == ["POST /v1/drops/d1/grabs", look_up, look_up]


async def test_refusals_of_a_grab_are_values_and_of_other_calls_are_raised(kind: str) -> None:
    async with (
        scripted(says(problem(409, "sold_out")), says(problem(404, "unknown_voucher"))) as script,
        calling(kind, script.url) as caller,
    ):
        assert (await caller.call("grab", "d1", "p", "n")).outcome == "sold_out"
        with pytest.raises(ApiRefused, match="404 unknown_voucher: x"):
            await caller.call("voucher", "vch_1_1")
    assert len(script.requests) == 2


async def test_every_request_is_signed_over_all_that_it_says(kind: str) -> None:
    async with (
        scripted(says(answer(200, b"{}"))) as script,
        calling(kind, script.url) as caller,
    ):
        for name, *args in (
            ("grab", "d1", "p", "n"),
            ("look_up", "d1", "n|1"),
            ("voucher", "vch_1_1"),
            ("event_page", "17"),
            ("subscribe", "https://x.example/a?b=c", ["t"]),
            ("unsubscribe", "sub_1"),
            ("test", "sub_1"),
        ):
            with contextlib.suppress(ApiRefused):  # `{}` is no voucher
                await caller.call(name, *args)
    assert [verified(request) for request in script.requests] == ["k-1"] * 7
    assert script.request_lines == [
        "POST /v1/drops/d1/grabs",
        "GET /v1/drops/d1/grabs/n%7C1",
        "GET /v1/vouchers/vch_1_1",
        "GET /v1/events?after=17&limit=500",
        "POST /v1/subscriptions",
        "DELETE /v1/subscriptions/sub_1",
        "POST /v1/subscriptions/sub_1/test",
    ]


async def test_a_subscription_that_may_have_been_made_is_not_made_twice(kind: str) -> None:
    async with scripted(hangs_up) as script, calling(kind, script.url) as caller:
        with pytest.raises(AnswerLost, match="POST /v1/subscriptions"):
            await caller.call("subscribe", "https://x.example", ["t"])
    assert len(script.requests) == 1


async def test_ending_a_subscription_that_ended_already_is_no_error(kind: str) -> None:
    gone = says(problem(404, "unknown_subscription"))
    async with (
        scripted(hangs_up, gone, says(answer(204, b""))) as script,
        calling(kind, script.url) as caller,
    ):
        assert await caller.call("unsubscribe", "sub_1") is False
        assert await caller.call("unsubscribe", "sub_2") is True


async def test_a_secret_is_not_shown_by_what_holds_it(kind: str) -> None:
    made = says(answer(201, b'{"subscription_id":"sub_1","secret":"whsec_abc"}'))
    async with scripted(made) as script, calling(kind, script.url) as caller:
        subscription = await caller.call("subscribe", "https://x.example", ["t"])
        assert (subscription.subscription_id, subscription.secret) == ("sub_1", "whsec_abc")
        assert "abc" not in repr(subscription)
        assert SECRET not in repr(vars(caller.client))


async def test_the_feed_is_read_page_by_page_until_it_is_drained(kind: str) -> None:
    pages = (page(1, 2, after="2"), page(5, after="5"), page(after="5"))
    async with (
        scripted(*(says(one) for one in pages)) as script,
        calling(kind, script.url) as caller,
    ):
        found = await caller.events(99, follow=False)
    assert [(cursor, event.id) for cursor, event in found] == [("", "evt_1"), ("2", "evt_2"), ("5", "evt_5")]
    assert script.request_lines == [
        "GET /v1/events?limit=500",
        "GET /v1/events?after=2&limit=500",
        "GET /v1/events?after=5&limit=500",
    ]


async def test_a_followed_feed_waits_through_empty_pages_and_faults(kind: str) -> None:
    reactions = (says(page(after="4")), hangs_up, says(problem(503, "overloaded")), says(page(5, after="5")))
    async with scripted(*reactions) as script, calling(kind, script.url) as caller:
        found = await caller.events(1, after="4", wait_s=20)
    assert [(cursor, event.id) for cursor, event in found] == [("5", "evt_5")]
    assert set(script.request_lines) == {"GET /v1/events?after=4&limit=500&wait=20"}


async def test_a_question_that_waits_is_not_timed_out_while_it_may_wait(kind: str) -> None:
    async def after_a_while(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.6)
        writer.write(page(1, after="1"))

    async with scripted(after_a_while) as script, calling(kind, script.url, timeout_s=0.3) as caller:
        assert (await caller.call("event_page", wait_s=2)).next == "1"
    assert len(script.requests) == 1


async def test_events_that_are_no_longer_kept_are_said_to_be_gone(kind: str) -> None:
    gone = says(problem(410, "events_gone"))
    async with scripted(gone) as script, calling(kind, script.url) as caller:
        with pytest.raises(ApiRefused, match="410 events_gone"):
            await caller.events(1, after="1")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"\xff", b'{"voucher_id":1}'])
async def test_what_the_api_would_never_say_is_refused_without_a_guess(kind: str, body: bytes) -> None:
    async with scripted(says(answer(200, body))) as script, calling(kind, script.url) as caller:
        with pytest.raises(ApiRefused, match="not what the API sends"):
            await caller.call("voucher", "vch_1_1")


async def test_nobody_listening_is_told_after_every_attempt(kind: str) -> None:
    async with scripted(hangs_up) as script:
        url = script.url
    async with calling(kind, url) as caller:
        with pytest.raises(Unreachable):
            await caller.call("drop", "d1")
        assert (await caller.call("grab", "d1", "p", "n")).outcome == "lost"


async def test_the_service_must_prove_its_name_also_for_a_bank_with_an_authority_of_its_own(
    kind: str, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    async with scripted(says(answer(200, VOUCHER)), tls=authority.server("127.0.0.1")) as script:
        async with calling(kind, script.url) as stranger:
            with pytest.raises(Unreachable):
                await stranger.call("voucher", "vch_1_1")
            assert (await stranger.call("grab", "d1", "p", "n")).outcome == "lost"
        assert script.requests == []
        async with calling(kind, script.url, tls=authority.client()) as caller:
            assert (await caller.call("voucher", "vch_1_1")).voucher_id == "vch_1_1"
            assert (await caller.call("grab", "d1", "p", "n")).outcome == "repeated"


async def test_a_redirect_is_not_followed_with_a_signed_request(kind: str) -> None:
    async with (
        scripted(says(answer(307, b"", "location: http://127.0.0.1:1/"))) as script,
        calling(kind, script.url) as caller,
    ):
        with pytest.raises(ApiRefused, match="307"):
            await caller.call("voucher", "vch_1_1")
    assert len(script.requests) == 1


async def test_a_key_may_be_of_another_kind() -> None:
    private = Ed25519SigningKey("k-2", b"p" * 32)
    async with (
        scripted(says(answer(200, VOUCHER))) as script,
        AsyncPartnerClient(script.url, "k-2", private, retries=QUICK) as client,
    ):
        await client.grab("d1", "p", "n")
        await client.voucher("vch_1_1")
    key = Ed25519Key("k-2", private.public_key)
    assert [verified(request, key) for request in script.requests] == ["k-2", "k-2"]


def test_both_clients_offer_the_same_calls_with_the_same_arguments() -> None:
    def calls(client: type) -> dict[str, list[inspect.Parameter]]:
        return {
            name: [
                parameter.replace(annotation=inspect.Parameter.empty)
                for parameter in inspect.signature(member).parameters.values()
            ]
            for name, member in inspect.getmembers(client, inspect.isfunction)
            if not name.startswith("_")
        }

    assert calls(PartnerClient) == calls(AsyncPartnerClient)
    assert "retries" not in inspect.signature(PartnerClient.grab).parameters


def test_a_client_is_made_from_credentials_and_refuses_what_cannot_sign() -> None:
    credentials = Credentials("o", "a", "bank-a", "k-1", SECRET)
    PartnerClient.of("http://127.0.0.1:1", credentials).close()
    for secret in ("no base64!", "AAAA"):
        with pytest.raises(CredentialsError, match="k-1"):
            PartnerClient("http://127.0.0.1:1", "k-1", secret)
    with pytest.raises(ValueError, match="no address"):
        PartnerClient("127.0.0.1", "k-1", SECRET)
