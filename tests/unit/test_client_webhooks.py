"""What a receiver may act upon: the verifier against the signatures of Standard Webhooks' own library."""

import base64
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook

from couponsvc.client import EVENT_TYPES, BadWebhook, MalformedEvent, WebhookVerifier
from couponsvc.client.events import WEBHOOK_TEST, EventPage, read_event
from couponsvc.support.webhook_signature import BadWebhookSecret
from couponsvc.values.event import SUBSCRIBABLE, EventType

SECRET, OTHER = (f"whsec_{base64.b64encode(bytes([n]) * 32).decode()}" for n in (1, 2))
NOW_S = 1_790_820_000
RECEIPT = (
    '{"voucher_id":"vch_1_2","drop_id":"d1","seq":2,"code":"C","person_token":"p\\"1","out_request_no":"n",'
    '"status":"issued","face_value_fen":2000,"min_spend_fen":0,"issued_at":"a","valid_from":"b",'
    '"valid_until":"c"}'
)
BODY = (
    '{"specversion":"1.0","id":"evt_7","source":"/v1/drops/d1","type":"couponsvc.voucher.issued.v1",'
    '"subject":"bank-a","time":"2026-10-01T02:00:00.000Z","sequence":"0000000003",'
    f'"datacontenttype":"application/json","data":{{"drop_id":"d1","vouchers":[{RECEIPT}]}}}}'
).encode()


def headers(body: bytes = BODY, secret: str = SECRET, sent_s: int = NOW_S) -> dict[str, str]:
    sent_at = datetime.fromtimestamp(sent_s, UTC)
    return {
        "Webhook-Id": "evt_7",
        "Webhook-Timestamp": str(sent_s),
        "Webhook-Signature": Webhook(secret).sign("evt_7", sent_at, body.decode()),
    }


def verifier(*secrets: str) -> WebhookVerifier:
    return WebhookVerifier(secrets or [SECRET], clock=lambda: NOW_S)


def test_a_signed_event_is_opened_and_typed() -> None:
    event = verifier().open(headers(), BODY)
    assert (event.id, event.type, event.subject) == ("evt_7", "couponsvc.voucher.issued.v1", "bank-a")
    assert (event.sequence_no, event.drop_id) == (3, "d1")
    issued = event.issued()
    assert issued is not None
    assert (issued.drop_id, [bytes(receipt) for receipt in issued.receipts]) == ("d1", [RECEIPT.encode()])
    assert [(voucher.seq, voucher.person_token) for voucher in issued.vouchers] == [(2, 'p"1')]


def test_either_of_two_secrets_opens_while_one_is_replaced() -> None:
    for secret in (SECRET, OTHER):
        assert verifier(SECRET, OTHER).open(headers(secret=secret), BODY).id == "evt_7"
    both = headers() | {
        "Webhook-Signature": " ".join(
            headers(secret=secret)["Webhook-Signature"] for secret in (OTHER, SECRET)
        )
    }
    assert verifier().open(both, BODY).id == "evt_7"


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        (headers(secret=OTHER), BODY),
        (headers(), BODY.replace(b'"seq":2', b'"seq":3')),
        (headers() | {"Webhook-Id": "evt_8"}, BODY),
        (headers() | {"Webhook-Timestamp": str(NOW_S + 1)}, BODY),
        (headers() | {"Webhook-Timestamp": "soon"}, BODY),
        (headers() | {"Webhook-Signature": ""}, BODY),
        (headers(sent_s=NOW_S - 301), BODY),
        (headers(sent_s=NOW_S + 301), BODY),
        ({}, BODY),
        (headers(b'{"a":1}'), b'{"a":1}'),
        (headers(b"[]"), b"[]"),
    ],
    ids=[
        "another secret",
        "altered body",
        "another id",
        "another moment",
        "no moment",
        "no signature",
        "too old",
        "too early",
        "no headers",
        "signed, but no event",
        "signed, but no object",
    ],
)
def test_anything_else_is_refused(sent: dict[str, str], body: bytes) -> None:
    with pytest.raises(BadWebhook) as raised:
        verifier().open(sent, body)
    assert SECRET not in str(raised.value)
    assert 'p"1' not in str(raised.value)


@pytest.mark.parametrize("secrets", [[], ["whsec_"], ["whsec_AAAA"], [SECRET, "not one"]])
def test_a_verifier_without_a_proper_secret_is_not_made(secrets: list[str]) -> None:
    with pytest.raises(ValueError, match="secret") as raised:
        WebhookVerifier(secrets)
    assert isinstance(raised.value, BadWebhookSecret) or not secrets


def test_one_secret_may_be_given_as_it_is() -> None:
    assert WebhookVerifier(SECRET, clock=lambda: NOW_S).open(headers(), BODY).id == "evt_7"


def test_the_client_knows_every_type_there_is() -> None:
    assert EVENT_TYPES == SUBSCRIBABLE
    assert EventType.WEBHOOK_TEST.public == WEBHOOK_TEST


def test_a_type_to_come_is_read_without_being_understood() -> None:
    body = b'{"specversion":"1.0","id":"evt_1","source":"/x","type":"new","time":"t","data":{"a":1},"b":2}'
    event = read_event(body)
    assert (event.issued(), event.sequence_no, event.drop_id, event.details()) == (None, None, None, {"a": 1})


def test_an_event_that_should_have_vouchers_and_has_none_is_said_to_be_malformed() -> None:
    body = BODY.replace(b'"vouchers"', b'"others"')
    with pytest.raises(MalformedEvent, match="evt_7"):
        read_event(body).issued()


def test_inside_of_a_page_the_cursor_to_keep_is_the_one_it_was_asked_with() -> None:
    event = read_event(BODY)
    page = EventPage((event, event, event), "9")
    assert [cursor for cursor, _ in page.with_cursors("6")] == ["6", "6", "9"]
    assert list(EventPage((), "6").with_cursors("6")) == []
