"""Writes events as they are sent: CloudEvents 1.0, JSON format, structured mode.

A document is a function of rows that never change (the event, the vouchers, the terms that the
first grant froze), so it needs no copy: the same number gives the same bytes, for ever.

Vouchers are written by the hundred: the receipt of a voucher that has marks in place of what differs
is the form which all vouchers of one moment fill in. So the bytes are those of `Receipt.render`.
"""

import json
from typing import Any, Final

import msgspec

from couponsvc.values.event import EventType, event_id
from couponsvc.values.moment import rfc3339
from couponsvc.values.voucher import Issued, Receipt

SEPARATOR: Final = "\x1f"
"""Between the values of a text of vouchers. No value can contain it: they are visible ASCII."""
VALUES_PER_VOUCHER: Final = 4
"""seq, code, person_token, out_request_no."""
_MARK_SEQ: Final = -1
"""No voucher has this number."""
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


def render_vouchers(receipt: Receipt, issued_ms: int, joined: str) -> str:
    """Write vouchers of one drop and one moment, joined by commas; each as `Receipt.render` does.

    Args:
        receipt: Of the drop.
        issued_ms: When all of them were issued.
        joined: seq, code, person_token and out_request_no of each, joined by `SEPARATOR`.
    """
    values = joined.split(SEPARATOR)
    seqs, persons = values[0::VALUES_PER_VOUCHER], values[2::VALUES_PER_VOUCHER]
    if '"' in joined or "\\" in joined:
        persons = [_encode_string(person).decode()[1:-1] for person in persons]
    filling = [""] * (len(seqs) * 5)
    filling[0::5] = filling[1::5] = seqs
    filling[2::5] = values[1::VALUES_PER_VOUCHER]
    filling[3::5] = persons
    filling[4::5] = values[3::VALUES_PER_VOUCHER]
    form = _form(receipt, issued_ms)
    return ",".join([form] * len(seqs)) % tuple(filling)


def _form(receipt: Receipt, issued_ms: int) -> str:
    """A voucher with `%s` for seq (twice), code, person_token and out_request_no."""
    text = receipt.render(Issued("%s", "%s", _MARK_SEQ, issued_ms, "%s")).decode()
    return text.replace(f'_{_MARK_SEQ}"', '_%s"', 1).replace(f'"seq":{_MARK_SEQ},', '"seq":%s,', 1)
