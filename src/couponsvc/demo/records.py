"""What the demo's processes write down, and what Postgres holds afterwards: the evidence."""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import msgspec

from couponsvc.client import Answer
from couponsvc.client.answers import PERSON_LIMIT


class Why(StrEnum):
    """Why a person pressed."""

    FIRST = "first"
    """A fresh number."""
    EARLY = "early"
    """A fresh number, before the opening."""
    DROPPED = "dropped"
    """A fresh number, and the connection closed before the answer could be read."""
    RETRY = "retry"
    """The same number again: no answer, a pending one, or told to come back."""
    DOUBLE = "double"
    """A second number at the same time, by the same impatient person."""
    MISMATCH = "mismatch"
    """A partner's bug: a number already used, for another person."""
    ASKED_AGAIN = "asked again"
    """After the rush: the same grab once more."""
    LOOKED_UP = "looked up"
    """After the rush: GET of the number."""


class Press(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One request and its answer. Times are Unix time in nanoseconds."""

    drop_id: str
    person_token: str
    out_request_no: str
    why: Why
    sent_ns: int
    settled_ns: int
    status: int
    """0 where no answer was read."""
    outcome: str
    retryable: bool
    voucher: str
    """Exact bytes of the voucher answered or, for `person_limit`, named; empty without one."""

    @property
    def confirmed(self) -> bool:
        """Whether a committed voucher was answered."""
        return self.status in (200, 201)


def press_of(drop_id: str, person_token: str, out_request_no: str, why: Why, answer: Answer) -> Press:
    """Write an answer down."""
    voucher = ""
    if answer.confirmed:
        voucher = answer.body.decode("utf-8", "replace")
    elif answer.outcome == PERSON_LIMIT and answer.refusal.voucher is not None:
        voucher = bytes(answer.refusal.voucher).decode("utf-8", "replace")
    return Press(
        drop_id,
        person_token,
        out_request_no,
        why,
        answer.sent_ns,
        answer.settled_ns,
        answer.status,
        answer.outcome,
        answer.retryable,
        voucher,
    )


class DropRow(NamedTuple):
    """A drop as Postgres holds it."""

    drop_no: int
    drop_id: str
    quantity: int
    per_person_limit: int
    issued: int
    opens_ms: int
    face_value_fen: int
    min_spend_fen: int
    valid_for_ms: int


class VoucherRow(NamedTuple):
    """A voucher as Postgres holds it."""

    drop_no: int
    seq: int
    person_token: str
    out_request_no: str
    code: str
    issued_ms: int


class Rows(NamedTuple):
    """All that stands in Postgres of the demo's drops."""

    drops: tuple[DropRow, ...]
    vouchers: tuple[VoucherRow, ...]


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Press)


def write_presses(path: Path, presses: Iterable[Press]) -> None:
    """Write JSON lines."""
    path.write_bytes(_encoder.encode_lines(presses))


def read_presses(path: Path) -> Iterator[Press]:
    """Read them back.

    Raises:
        OSError, msgspec.MsgspecError: not there, or cut off.
    """
    with path.open("rb") as lines:
        for line in lines:
            yield _decoder.decode(line)
