"""docs/webhooks.md followed from top to bottom: a real service, a real relay, the guide's own receiver."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from couponsvc.client import EVENT_TYPES, ApiRefused, AsyncPartnerClient, Event, WebhookVerifier
from couponsvc.client.requests import Request, read_request
from tests.flow.conftest import Service, wait_until
from tests.flow.webhook_guide import GUIDE, OTHER, Receiver, block, receiving, shell
from tests.integration.scripted_server import Script, answer, says, scripted

pytestmark = pytest.mark.slow  # receivers as processes, a relay, waits of seconds

ISSUED, SOLD_OUT = "couponsvc.voucher.issued.v1", "couponsvc.drop.sold_out.v1"


@pytest.fixture(scope="module")
def changes() -> dict[str, Any]:
    """Deliveries may go to this machine."""
    return {"webhook_allow_private": True}


@pytest.fixture
async def telling(service: Service) -> Service:
    """The service with a relay."""
    await service.start("relay")
    return service


@pytest.fixture
async def bank(telling: Service) -> AsyncIterator[AsyncPartnerClient]:
    partner = telling.credentials["partner"]
    async with AsyncPartnerClient(telling.url, partner["key_id"], partner["secret"]) as client:
        yield client


@pytest.fixture
async def receiver(tmp_path: Path) -> AsyncIterator[Receiver]:
    """The guide's receiver, not started yet: it needs a secret first."""
    async with receiving(tmp_path) as found:
        yield found


def typed_in(script: str, service: Service, receiver: Receiver) -> str:
    """A block of the guide with this test's places instead of the guide's."""
    credentials = receiver.directory / "credentials.json"
    credentials.write_text(json.dumps(service.credentials))
    return (
        script.replace("var/credentials.json", str(credentials))
        .replace("http://127.0.0.1:8000", service.url)
        .replace("http://127.0.0.1:9000/events", receiver.url)
    )


def header_fields(request: bytes) -> tuple[str, dict[str, str], bytes]:
    """Request line, headers, body."""
    head, _, body = request.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    return line, {name: value for name, _, value in (field.partition(": ") for field in fields)}, body


async def until_told(bank: AsyncPartnerClient, count: int) -> list[Event]:
    """The partner's feed once it has so many events."""
    found: list[Event] = []

    async def told() -> bool:
        found[:] = [event async for _, event in bank.events(follow=False)]
        return len(found) >= count

    await wait_until(told, f"{count} events are in the feed")
    return found


async def until_heard(receiver: Receiver, event_id: str) -> None:
    """Wait until the receiver has an event in its books."""

    async def heard() -> bool:
        return event_id in receiver.events()

    await wait_until(heard, f"{event_id} arrived")


async def until_posted(script: Script) -> None:
    """Wait until a scripted receiver got something."""

    async def posted() -> bool:
        return bool(script.requests)

    await wait_until(posted, "a webhook arrived")


async def test_the_commands_of_the_guide_lead_to_the_voucher_in_the_partners_books(
    telling: Service, bank: AsyncPartnerClient, receiver: Receiver
) -> None:
    drop_id = await telling.drop(1)
    answer = await shell(typed_in(block("bash", "/v1/subscriptions"), telling, receiver))
    subscription = json.loads(answer)
    assert list(subscription) == ["subscription_id", "secret"]
    await receiver.start(subscription["secret"])

    test_button = re.search(r"^curl .*/test .*$", GUIDE, re.MULTILINE)
    assert test_button is not None
    credential = block("bash", "/v1/subscriptions").splitlines()[0]
    script = typed_in(f"{credential}\n{test_button[0]}", telling, receiver)
    queued = await shell(script.replace("sub_1", subscription["subscription_id"]))
    assert json.loads(queued)["status"] == "queued"

    voucher = (await bank.grab(drop_id, "p-8f3a", "20261001-000017")).voucher

    async def voucher_is_there() -> bool:
        return receiver.vouchers() == {(voucher.voucher_id, "p-8f3a", voucher.code)}

    await wait_until(voucher_is_there, "the voucher is in the partner's books")


async def test_the_feed_is_read_with_a_token_and_with_curl_and_openssl_alone(
    telling: Service, bank: AsyncPartnerClient, receiver: Receiver
) -> None:
    drop_id = await telling.drop(3)
    await bank.grab(drop_id, "p-1", "n-1")
    await until_told(bank, 3)
    pages = [
        json.loads(await shell(typed_in(script, telling, receiver)))
        for script in (
            block("bash", "/v1/subscriptions").splitlines()[0] + "\n" + block("bash", "events?limit=500"),
            block("bash", "openssl"),
        )
    ]
    assert pages[0] == pages[1]
    kinds = ["couponsvc.drop.defined.v1", "couponsvc.drop.opened.v1", ISSUED]
    assert [event["type"] for event in pages[0]["events"]] == kinds
    assert pages[0]["next"] == (await bank.event_page()).next


async def test_a_webhook_is_the_event_of_the_feed_byte_by_byte_and_looks_as_shown(
    telling: Service, bank: AsyncPartnerClient
) -> None:
    drop_id = await telling.drop(3)
    async with scripted(says(answer(204, b""))) as script:
        made = await bank.subscribe(f"{script.url}/events", [ISSUED], [drop_id])
        voucher = await bank.grab(drop_id, "p-1", "n-1")
        await until_posted(script)
    line, headers, body = header_fields(script.requests[0])
    event = WebhookVerifier([made.secret]).open(headers, body)
    issued = event.issued()
    assert issued is not None
    assert (issued.drop_id, [bytes(receipt) for receipt in issued.receipts]) == (drop_id, [voucher.body])
    assert body in (await bank.send(read_request("events"))).body

    shown_line, shown_headers, shown_body = shown_webhook()
    assert line == shown_line
    assert headers.keys() >= shown_headers.keys()
    assert headers["content-type"] == shown_headers["content-type"]
    assert headers["webhook-id"] == event.id
    shown, sent = json.loads(shown_body), json.loads(body)
    assert list(shown) == list(sent)
    assert [list(one) for one in shown["data"]["vouchers"]] == [list(sent["data"]["vouchers"][0])]


def shown_webhook() -> tuple[str, dict[str, str], bytes]:
    """Request line, headers and body of the guide's example; the body as it was before it was broken up."""
    body = re.sub(r"\n\s*", "", block("json", "specversion"))
    return header_fields(
        block("http", "webhook-id").strip().replace("\n", "\r\n").encode() + b"\r\n\r\n" + body.encode()
    )


def test_the_webhook_that_is_shown_was_signed_with_the_secret_that_is_shown() -> None:
    (secret,) = re.findall(r'"secret":"(whsec_[^"…]+)"', GUIDE)
    _, headers, body = shown_webhook()
    at_that_time = float(headers["webhook-timestamp"])
    assert WebhookVerifier(secret, clock=lambda: at_that_time).open(headers, body).id == "evt_3"


async def take_away(service: Service, drop_id: str) -> None:
    """Let no partner grab from a drop any more."""
    stands = await service.operate("GET", f"/v1/drops/{drop_id}")
    kept = ("program_id", "template_id", "quantity", "per_person_limit", "opens_at", "closes_at")
    wanted = {name: stands[name] for name in kept} | {"partners": []}
    await service.operate("PUT", f"/v1/drops/{drop_id}", wanted)


async def test_every_type_says_what_the_guide_lists(telling: Service, bank: AsyncPartnerClient) -> None:
    await telling.drop(1, closes_in_s=1, wait=False)
    drop_id, closed = await telling.drop(2), await telling.drop(5)
    for action in ("pause", "resume", "close"):
        await telling.operate("POST", f"/v1/drops/{closed}/{action}")
    await take_away(telling, await telling.drop(1))
    await telling.operate("POST", f"/v1/drops/{drop_id}/restock", {"current_quantity": 2, "add": 1})
    for number in range(3):
        assert (await bank.grab(drop_id, f"p-{number}", f"n-{number}")).confirmed
    said: dict[str, set[str]] = {}

    async def everything_was_told() -> bool:
        for event in json.loads((await bank.send(read_request("events"))).body)["events"]:
            if event["type"] not in said:
                schema = await bank.send(Request(b"GET", f"/schemas/{event['type']}.json".encode()))
                jsonschema.validate(event, json.loads(schema.body))
            said.setdefault(event["type"], set()).update(event["data"])
        return len(said) == len(EVENT_TYPES) + 1

    async with scripted(says(answer(204, b""))) as script:
        await bank.test((await bank.subscribe(script.url, [SOLD_OUT])).subscription_id)
        await wait_until(everything_was_told, "one event of every type was told")
    for kinds, members in re.findall(r"^\| (`couponsvc\.[^|]*) \| ([^|]*) \|$", GUIDE, re.MULTILINE):
        listed = set(re.findall(r"`(\w+)`", members))
        for kind in re.findall(r"`(couponsvc[\w.]+)`", kinds):
            assert (kind, said.pop(kind) - {"drop_id"}) == (kind, listed)
    assert said == {}


async def test_the_python_of_the_guide_runs(telling: Service, receiver: Receiver) -> None:
    drop_id = await telling.drop(1)
    partner = telling.credentials["partner"]
    script = typed_in(block("python", "PartnerClient("), telling, receiver)
    said: list[tuple[object, ...]] = []
    names = {
        "key_id": partner["key_id"],
        "secret": partner["secret"],
        "saved_cursor": "",
        "print": lambda *words: said.append(words),
    }
    await asyncio.to_thread(exec, script.replace("first-steps-dining-20", drop_id), names)
    assert said[0][0] == "issued"
    assert isinstance(names["verifier"], WebhookVerifier)


async def test_events_are_seen_and_repeated_and_secrets_rotated_as_the_guide_says(
    telling: Service, bank: AsyncPartnerClient, receiver: Receiver
) -> None:
    drop_id = await telling.drop(9)
    made = await bank.subscribe(receiver.url, [ISSUED])
    await receiver.start(OTHER)  # it knows another secret, and refuses
    await bank.grab(drop_id, "p-1", "n-1")

    async def refused() -> bool:
        page = await bank.deliveries(made.subscription_id, state="waiting")
        return any(attempt.status == 400 for one in page.deliveries for attempt in one.attempts)

    await wait_until(refused, "the receiver refused")
    await receiver.start(made.secret)
    event = (await until_told(bank, 3))[-1]
    assert await bank.redeliver(made.subscription_id, event_ids=[event.id]) == 1
    await until_heard(receiver, event.id)

    rotated = await bank.rotate_secret(made.subscription_id)
    for secrets in ([made.secret], [rotated.secret], [rotated.secret, made.secret]):
        receiver.forget()
        await receiver.start(*secrets)
        assert await bank.redeliver(made.subscription_id, since=event.time, until="2100-01-01T00:00:00Z") == 1
        await until_heard(receiver, event.id)
    (listed,) = await bank.subscriptions()
    assert (listed.subscription_id, listed.types) == (made.subscription_id, (ISSUED,))
    assert listed.previous_secret_until is not None
    with pytest.raises(ApiRefused, match="409 conflict") as conflict:
        await bank.subscribe(receiver.url, [ISSUED])
    assert made.subscription_id in conflict.value.refusal.detail
    assert await bank.unsubscribe(made.subscription_id)
    assert await bank.subscriptions() == ()


async def test_a_receiver_that_answers_410_is_left_alone(telling: Service, bank: AsyncPartnerClient) -> None:
    drop_id = await telling.drop(9)
    async with scripted(says(answer(410, b""))) as script:
        made = await bank.subscribe(script.url, [ISSUED])
        await bank.grab(drop_id, "p-1", "n-1")

        async def disabled() -> bool:
            return (await bank.subscription(made.subscription_id)).disabled_at is not None

        await wait_until(disabled, "the subscription is disabled")
        parked = await bank.deliveries(made.subscription_id, state="parked")
        assert [one.parked_because for one in parked.deliveries] == ["the receiver answered 410"]
        with pytest.raises(ApiRefused, match="409 conflict"):
            await bank.test(made.subscription_id)


async def test_the_feed_alone_rebuilds_the_books_while_vouchers_are_issued(
    telling: Service, bank: AsyncPartnerClient
) -> None:
    drops = [await telling.drop(40) for _ in range(3)]
    books: dict[str, bytes] = {}
    sequences: dict[str | None, list[int | None]] = {drop_id: [] for drop_id in drops}

    async def follow() -> None:
        cursor = ""
        while len(books) < 120:
            page = await bank.event_page(cursor, limit=3, wait_s=5)
            for event in page.events:
                sequences[event.drop_id].append(event.sequence_no)
                if issued := event.issued():
                    vouchers = zip(issued.vouchers, issued.receipts, strict=True)
                    books.update((one.voucher_id, bytes(receipt)) for one, receipt in vouchers)
            cursor = page.next

    _, *answers = await asyncio.gather(
        asyncio.wait_for(follow(), 30),
        *(bank.grab(drop_id, f"p-{n}", f"{drop_id}-{n}") for n in range(40) for drop_id in drops),
    )
    assert books == {one.voucher.voucher_id: one.body for one in answers}
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in sequences.values())
