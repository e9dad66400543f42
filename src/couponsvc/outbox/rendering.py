"""Writes events as they are sent: CloudEvents 1.0, JSON format, structured mode.

A document is a function of rows that never change (the event, the vouchers, the terms that the
first grant froze), so it needs no copy: the same number gives the same bytes, for ever.

Vouchers are written by the hundred: the receipt of a voucher that has marks in place of what differs
is the form which all vouchers of one moment fill in. So the bytes are those of `Receipt.render`.
"""

import json
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from couponsvc.values.event import EventType, event_id
from couponsvc.values.moment import rfc3339
from couponsvc.values.voucher import Issued, Receipt

SEPARATOR: Final = "\x1f"
"""Between the values of a text of vouchers. No value can contain it: they are visible ASCII."""
VALUES_PER_VOUCHER_COUNT: Final = 4
"""seq, code, person_token, out_request_no."""
_MARK: Final = "@@"
"""Stands for a text in the receipt that becomes a form. JSON leaves it as it is; no drop's name has it."""
_MARK_SEQ: Final = -1
"""The same for the number."""
_encode_string = msgspec.json.Encoder().encode


def render_event(
    *,
    event_no: int,
    kind: EventType,
    source: str,
    partner_id: str,
    occurred_ms: int,
    sequence: int | None,
    data: str,
) -> bytes:
    """Write one event.

    Args:
        event_no: Becomes the `id`.
        kind: Becomes `type` and `dataschema`.
        source: What it is about: path of a drop, or of a subscription.
        partner_id: Whose it is; the `subject`.
        occurred_ms: When it happened, Unix milliseconds.
        sequence: Its place among the partner's events of the drop, 1, 2, 3 …; None: of no drop.
        data: JSON of the member `data`.
    """
    place = "" if sequence is None else f'"sequence":"{sequence:010d}",'
    return (
        f'{{"specversion":"1.0","id":"{event_id(event_no)}","source":"{source}","type":"{kind.public}",'
        f'"subject":"{partner_id}","time":"{rfc3339(occurred_ms)}",{place}'
        f'"datacontenttype":"application/json","dataschema":"{data_schema(kind)}","data":{data}}}'
    ).encode()


def data_schema(kind: EventType) -> str:
    """CloudEvents `dataschema`, which must be an absolute URI: the `$id` under which the schema stands."""
    return f"urn:couponsvc:schema:{kind.public}"


def vouchers_data(drop_id: str, vouchers: list[str]) -> str:
    """`data` of an event of vouchers.

    Args:
        drop_id: The drop's name.
        vouchers: As `render_vouchers` writes them.
    """
    return f'{{"drop_id":"{drop_id}","vouchers":[{",".join(vouchers)}]}}'


def drop_data(drop_id: str, data: str) -> str:
    """`data` of an event of a drop: its name, then what the event's row says (a JSON object)."""
    return f'{{"drop_id":"{drop_id}"}}' if data == "{}" else f'{{"drop_id":"{drop_id}",{data[1:]}'


def compact(data: dict[str, Any]) -> str:
    """JSON of the kind that event rows hold: no spaces, members in the given order."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def voucher_count(joined: str | None) -> int:
    """How many vouchers a text of them holds; None: there is no text, hence none."""
    return 0 if joined is None else (joined.count(SEPARATOR) + 1) // VALUES_PER_VOUCHER_COUNT


def one_by_one(joined: str) -> list[str]:
    """A text of vouchers as a text for each."""
    values = iter(joined.split(SEPARATOR))
    return [SEPARATOR.join(voucher) for voucher in zip(values, values, values, values, strict=True)]


def render_vouchers(receipt: Receipt, issued_ms: int, joined: str) -> str:
    """Write vouchers of one drop and one moment, joined by commas; each as `Receipt.render` does.

    Args:
        receipt: Of the drop.
        issued_ms: When all of them were issued.
        joined: seq, code, person_token and out_request_no of each, joined by `SEPARATOR`.
    """
    values = iter(joined.split(SEPARATOR))
    rows: Iterable[tuple[str, str, str, str]] = zip(values, values, values, values, strict=True)
    if '"' in joined or "\\" in joined:  # what JSON escapes in visible ASCII
        rows = (
            (seq, code, _encode_string(person).decode()[1:-1], number) for seq, code, person, number in rows
        )
    head, to_seq, to_code, to_person, to_number, tail = _form(receipt, issued_ms)
    return ",".join(
        [
            f"{head}{seq}{to_seq}{seq}{to_code}{code}{to_person}{person}{to_number}{number}{tail}"
            for seq, code, person, number in rows
        ]
    )


def _form(receipt: Receipt, issued_ms: int) -> list[str]:
    """What stands around seq (twice), code, person_token and out_request_no in a receipt of that moment."""
    text = receipt.render(Issued(_MARK, _MARK, _MARK_SEQ, issued_ms, _MARK)).decode()
    marked = text.replace(f'_{_MARK_SEQ}"', f'_{_MARK}"', 1).replace(
        f'"seq":{_MARK_SEQ},', f'"seq":{_MARK},', 1
    )
    return marked.split(_MARK)
