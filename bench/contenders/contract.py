"""The job all alternatives do: one drop, the contract's grab in, the contract's voucher or refusal out.

Also what the Python services among them share, so that each of their files shows only its own way.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from typing import Final

from fastapi.responses import Response
from pydantic import BaseModel, Field

DROP_ID: Final = "qingdao-2022-w31-wed-dining-20"
PATH: Final = f"/v1/drops/{DROP_ID}/grabs"
QUANTITY: Final = 100_000_000
"""More than any run takes, where a unit of stock is a number and not a row."""
VALID_FOR: Final = timedelta(hours=48)
SCATTER: Final = 0x9E3779B97F4A7C15
"""Odd, so that no two products of 64 bits are the same (Fibonacci hashing)."""
CODE_RANDOM_BYTES: Final = 7
CODE_CHARS: Final = 13


class Grab(BaseModel):
    """The body of a grab."""

    person_token: str = Field(min_length=1, max_length=128)
    out_request_no: str = Field(min_length=1, max_length=64)
    channel: str | None = Field(default=None, max_length=32)
    region: str | None = Field(default=None, max_length=6)


class Voucher(BaseModel):
    """The answer at level D."""

    voucher_id: str
    drop_id: str
    seq: int
    code: str
    person_token: str
    out_request_no: str
    status: str = "issued"
    face_value_fen: int = 2000
    min_spend_fen: int = 6000
    issued_at: datetime
    valid_from: datetime
    valid_until: datetime


def new_code() -> str:
    """A random till code, as long as ours."""
    return token_hex(CODE_RANDOM_BYTES)[:CODE_CHARS].upper()


def receipt(drop_id: str, seq: int, code: str, grab: Grab, issued_at: datetime) -> Voucher:
    """The voucher of a committed row."""
    return Voucher(
        voucher_id=f"vch_1_{seq}",
        drop_id=drop_id,
        seq=seq,
        code=code,
        person_token=grab.person_token,
        out_request_no=grab.out_request_no,
        issued_at=issued_at,
        valid_from=issued_at,
        valid_until=issued_at + VALID_FOR,
    )


def refused(code: str) -> Response:
    """409 with the problem's code."""
    body = b'{"type":"/problems/%s","status":409,"code":"%s","retryable":false}'
    return Response(body % (code.encode(), code.encode()), 409, media_type="application/problem+json")


EXAMPLE: Final = (
    receipt(
        DROP_ID,
        17,
        "7K2QX9MPW4RTA",
        Grab(person_token="p-8f3a5c0d11e24b77", out_request_no="20261001-000017"),  # noqa: S106 - a pseudonym
        datetime(2026, 10, 1, 2, 0, 0, 123_000, UTC),
    )
    .model_dump_json()
    .encode()
)
"""What the two echoes answer: the size of a voucher."""


def raw_requests(round_no: int, count: int) -> Iterator[bytes]:
    """Whole HTTP/1.1 requests of a grab, a new person and number in each, as long as ours unsigned.

    Tokens look random, as real ones do: LuaJIT hashes a few bytes of a string only, and would find
    thousands of bodies that count upwards to be alike.
    """
    head = f"POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: "
    for number in range(count):
        token = ((round_no << 32) + number) * SCATTER % 2**64
        body = (
            f'{{"person_token":"p-{token:016x}","out_request_no":"20261001-{round_no:03}-{number:08}",'
            '"channel":"app","region":"370200"}'
        )
        yield f"{head}{len(body)}\r\n\r\n{body}".encode()
