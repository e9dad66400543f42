"""Answers that are not problems."""

from typing import Any

import msgspec
from fastapi import Response

from couponsvc.values.drop import Drop
from couponsvc.values.voucher import Issued, Receipt, StandingVoucher

_encode = msgspec.json.Encoder().encode


def json_answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:  # noqa: ANN401 - anything msgspec writes
    """A JSON response."""
    return Response(_encode(content), status, headers, media_type="application/json")


def receipt_of(drop: Drop) -> Receipt:
    """What writes the vouchers of a drop; its terms are frozen once there is one."""
    return Receipt(drop.drop_no, drop.drop_id, drop.terms)


def voucher_bytes(receipt: Receipt, voucher: StandingVoucher) -> bytes:
    """The voucher as JSON, the same bytes that answered its grab."""
    return receipt.render(
        Issued(voucher.person_token, voucher.out_request_no, voucher.seq, voucher.issued_ms, voucher.code)
    )
