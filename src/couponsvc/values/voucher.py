"""The voucher: the committed row, and the one way to write it as JSON.

Every answer that shows a voucher goes through `Receipt.render`, so that a retry
gets the byte-identical voucher whoever answers it: the waiter, the gate's note,
or the ledger (invariant I4).
"""

import re
from typing import NamedTuple

import msgspec

from couponsvc.values.drop import VoucherTerms
from couponsvc.values.moment import rfc3339

_encode_string = msgspec.json.Encoder().encode


class Issued(NamedTuple):
    """What a commit adds to a grab: together with the drop it determines the voucher."""

    person_token: str
    out_request_no: str
    seq: int
    """Position in the drop, 1..issued without gaps."""
    issued_ms: int
    code: str


class StandingVoucher(NamedTuple):
    """A committed voucher row, in the order of the ledger's columns."""

    drop_no: int
    seq: int
    partner_no: int
    ordinal: int
    issued_ms: int
    person_token: str
    out_request_no: str
    code: str
    channel: str
    region: str


def voucher_id(drop_no: int, seq: int) -> str:
    """Name a voucher: `vch_<drop_no>_<seq>`. Derived, so that no index is needed to find it."""
    return f"vch_{drop_no}_{seq}"


MAX_NUMBER = 2**31 - 1
"""Largest drop_no or seq: Postgres `integer`."""
_VOUCHER_ID = re.compile(r"vch_([1-9][0-9]{0,9})_([1-9][0-9]{0,9})").fullmatch
"""Bounded digits: Python refuses to read a number of thousands of them."""


def parse_voucher_id(text: str) -> tuple[int, int] | None:
    """`(drop_no, seq)` of a voucher's name, or None where it is not one of ours."""
    found = _VOUCHER_ID(text)
    if found is None:
        return None
    drop_no, seq = int(found[1]), int(found[2])
    return (drop_no, seq) if max(drop_no, seq) <= MAX_NUMBER else None


class Receipt:
    """Writes the vouchers of one drop; made once per drop definition, used per answer."""

    __slots__ = ("_drop_json", "_drop_no", "_terms_json", "_valid_for_ms")

    def __init__(self, drop_no: int, drop_id: str, terms: VoucherTerms) -> None:
        self._drop_no = drop_no
        self._drop_json = _encode_string(drop_id).decode()
        self._terms_json = f'"face_value_fen":{terms.face_value_fen},"min_spend_fen":{terms.min_spend_fen}'
        self._valid_for_ms = terms.valid_for_ms

    def render(self, issued: Issued) -> bytes:
        """Write the receipt of issuance as JSON, the same bytes for the same row for ever."""
        issued_at = rfc3339(issued.issued_ms)
        return (
            f'{{"voucher_id":"vch_{self._drop_no}_{issued.seq}","drop_id":{self._drop_json},'
            f'"seq":{issued.seq},"code":"{issued.code}",'
            f'"person_token":{_encode_string(issued.person_token).decode()},'
            f'"out_request_no":"{issued.out_request_no}","status":"issued",{self._terms_json},'
            f'"issued_at":"{issued_at}","valid_from":"{issued_at}",'
            f'"valid_until":"{rfc3339(issued.issued_ms + self._valid_for_ms)}"}}'
        ).encode()
