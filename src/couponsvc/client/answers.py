"""Answers to grabs, typed: what the contract's answer table says, from the caller's side."""

from typing import Final

import msgspec

ISSUED: Final = "issued"
"""201: granted by this request, committed."""
REPEATED: Final = "repeated"
"""200: granted before under this number."""
PENDING: Final = "pending"
"""202: decided, the commit was not seen yet; ask again with the same number."""
LOST: Final = "lost"
"""No answer: the connection broke or the time was up. A grant may exist; ask again."""
SOLD_OUT: Final = "sold_out"
PERSON_LIMIT: Final = "person_limit"
REQUEST_MISMATCH: Final = "request_mismatch"
NOT_STARTED: Final = "not_started"
UNKNOWN_REQUEST: Final = "unknown_request"

_BY_STATUS: Final = {0: LOST, 200: REPEATED, 201: ISSUED, 202: PENDING}
_FIRST_REFUSAL: Final = 300


class Voucher(msgspec.Struct, frozen=True):
    """The receipt of issuance (contract: Grab)."""

    voucher_id: str
    drop_id: str
    seq: int
    code: str
    person_token: str
    out_request_no: str
    status: str
    face_value_fen: int
    min_spend_fen: int
    issued_at: str
    valid_from: str
    valid_until: str


class Refusal(msgspec.Struct, frozen=True):
    """A problem (RFC 9457), as far as a caller acts on it."""

    code: str = ""
    title: str = ""
    retryable: bool = False
    detail: str = ""
    opens_at: str | None = None
    voucher: msgspec.Raw = msgspec.Raw()
    """The voucher held (`person_limit`), byte by byte as it was sent; empty where none is shown."""


_voucher_decoder = msgspec.json.Decoder(Voucher)
_refusal_decoder = msgspec.json.Decoder(Refusal)
_NO_REFUSAL: Final = Refusal()


class ApiRefused(Exception):
    """The API answered with a problem; the message is its code and detail on one line."""

    def __init__(self, status: int, refusal: Refusal) -> None:
        said = refusal.title or f"HTTP {status}"
        super().__init__(f"{status} {refusal.code or said}: {refusal.detail or said}".replace("\n", " "))
        self.status: Final = status
        self.refusal: Final = refusal


class Answer:
    """One answer, or the lack of one (`status` 0, outcome `lost`). Read-only by convention.

    `sent_ns` and `settled_ns` are this machine's clock (Unix time) when the request was handed to
    the system and when the answer was complete or given up; waiting for a connection is not in it.
    """

    __slots__ = ("body", "outcome", "refusal", "retry_after_s", "sent_ns", "settled_ns", "status")

    def __init__(
        self,
        status: int,
        body: bytes,
        retry_after_s: float | None = None,
        *,
        sent_ns: int = 0,
        settled_ns: int = 0,
    ) -> None:
        self.status: Final = status
        self.body: Final = body
        self.retry_after_s: Final = retry_after_s
        self.sent_ns: Final = sent_ns
        self.settled_ns: Final = settled_ns
        self.refusal: Final = _read_refusal(body) if status >= _FIRST_REFUSAL else _NO_REFUSAL
        """The problem; an empty one where there is none."""
        self.outcome: Final = _BY_STATUS.get(status) or self.refusal.code or f"http_{status}"
        """`issued`, `repeated`, `pending`, `lost`, or the problem's code; `http_<status>` if neither."""

    def __repr__(self) -> str:
        return f"Answer({self.status}, {self.outcome})"

    @property
    def confirmed(self) -> bool:
        """Whether this is a committed voucher."""
        return self.status in (200, 201)

    @property
    def retryable(self) -> bool:
        """Whether the same number should be asked again: nothing is known, or it may change."""
        return self.refusal.retryable or self.status in (0, 202)

    @property
    def voucher(self) -> Voucher:
        """The voucher of a 200 or 201.

        Raises:
            msgspec.MsgspecError: the body is no voucher.
        """
        return _voucher_decoder.decode(self.body)


def _read_refusal(body: bytes) -> Refusal:
    try:
        return _refusal_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _NO_REFUSAL  # a proxy's own page


NO_ANSWER: Final = Answer(0, b"")
