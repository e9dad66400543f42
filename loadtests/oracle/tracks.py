"""The index of a run: one small track per request number, made in one pass over the records.

A million records must fit in memory, so a track keeps times and flags and never an answer: what
proves a violation is read from the files again, for the few numbers that need it.
"""

from collections import defaultdict
from collections.abc import Iterator
from hashlib import blake2b
from re import compile as pattern
from typing import Final

import msgspec

from loadtests.records import ABANDONED, GRAB, ORACLE, Answered

FINAL_CODES: Final = frozenset({"sold_out", "person_limit", "request_mismatch", "ended"})
"""Refusals that, with `retryable` false, stand for good (contract: Grab)."""
NOTHING_TAKEN: Final = frozenset({"overloaded", "rate_limited"})
"""503 and 429 that promise that nothing was taken."""
DISTURBED_CODES: Final = frozenset(
    {"rebuilding", "gate_unavailable", "ledger_unavailable", "internal", "not_ready"}
)
"""Answers that only a deployment in trouble gives: grants may have been lost and decided anew."""
NEVER_MS: Final = float("inf")


class Seen:
    """What a number was answered, at any time: bits, as plain integers because an enum's cost µs each."""

    VOUCHER: Final = 1
    """200 or 201."""
    PENDING: Final = 2
    """202."""
    UNCERTAIN: Final = 4
    """No answer, 202 or a server error: a grant may exist."""
    FINAL: Final = 8
    """A refusal that stands for good, restocking and new definitions aside."""
    SOLD_OUT: Final = 16
    PERSON_LIMIT: Final = 32
    MISMATCH: Final = 64
    REFUSED: Final = 128
    """Any 403, 404 or 409."""
    MANY_WORKERS: Final = 256
    """Asked by more than one worker, the oracle aside: its records have no common clock."""
    IN_LEDGER: Final = 512
    """A row of the ledger names the number, with this drop and person."""
    ANSWERED: Final = 1024
    """Anything but silence."""
    OPEN: Final = 2048
    """Answered 202, and without an end although the oracle asked again."""
    GRABBED: Final = 4096
    """Sent as a whole grab by its own worker, not trickled or left unread: budgets are about these."""


class Track:
    """One number, as used for one drop and one person."""

    __slots__ = (
        "drop_id",
        "first_answer_ms",
        "first_due_ms",
        "first_sent_ms",
        "other",
        "person_token",
        "row_digest",
        "seen",
        "voucher_digest",
        "voucher_ms",
        "worker",
    )

    def __init__(self, record: Answered, other: "Track | None") -> None:
        self.drop_id = record.drop_id
        self.person_token = record.person_token
        self.worker = record.worker
        self.first_sent_ms = record.sent_ms
        self.first_due_ms = record.intended_ms
        self.first_answer_ms = NEVER_MS
        self.voucher_ms = NEVER_MS
        """When its voucher was first answered, by the same clock; what the oracle was told moves nothing."""
        self.voucher_digest = b""
        """Of the first voucher read from the records, whoever was told."""
        self.row_digest = b""
        """Of the ledger's row."""
        self.seen = 0
        self.other = other
        """The same number, used for another drop or person."""

    def chain(self) -> "Iterator[Track]":
        """This track and the others of the same number."""
        track: Track | None = self
        while track is not None:
            yield track
            track = track.other


_STATUS_MEMBER: Final = pattern(rb'"status":\s*"[a-z_]+"')


def exact_digest(voucher: bytes) -> bytes:
    """Equal for equal bytes."""
    return blake2b(voucher, digest_size=12).digest()


def row_digest(voucher: bytes) -> bytes:
    """Equal where everything is but the present status, which a ledger's line may show."""
    return exact_digest(_STATUS_MEMBER.sub(b'"status":"issued"', voucher, count=1))


class VoucherName(msgspec.Struct, frozen=True):
    """What the rules compare of a voucher."""

    voucher_id: str
    drop_id: str
    seq: int
    code: str
    person_token: str
    out_request_no: str
    issued_at: str = ""


_decode_voucher: Final = msgspec.json.Decoder(VoucherName).decode


def read_voucher(voucher: bytes) -> VoucherName | None:
    """The voucher's members, or None where the bytes are no voucher."""
    try:
        return _decode_voucher(voucher)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


class Moment(msgspec.Struct, gc=False):
    """The earliest time at which something was seen, and the number that shows it."""

    at_ms: float = NEVER_MS
    number: str = ""

    def note(self, at_ms: float, number: str) -> None:
        """Keep the earlier one."""
        if at_ms < self.at_ms:
            self.at_ms, self.number = at_ms, number


Moments = defaultdict[tuple[str, str], Moment]
"""By `(drop_id, worker)`."""


class Book:
    """Every number of a run."""

    def __init__(self) -> None:
        self.tracks: Final[dict[str, Track]] = {}
        """By number; a number used more than once is a chain."""
        self.records_count = 0
        self.granted: Final[Moments] = defaultdict(Moment)
        """When a voucher of the drop was first answered."""
        self.disturbed: Final[dict[str, str]] = {}
        """Drops of which somebody was answered what only trouble explains: drop -> code."""
        self._strings: Final[dict[str, str]] = {}

    def observe(self, record: Answered) -> Track:
        """Take one record in.

        Times of one number are kept by its first worker's clock; what the oracle asked came after
        everything else and moves none of them.
        """
        self.records_count += 1
        track = self.of(record) or self._open(record)
        if record.worker == track.worker:
            track.first_sent_ms = min(track.first_sent_ms, record.sent_ms)
            track.first_due_ms = min(track.first_due_ms, record.intended_ms)
        elif record.worker != ORACLE:
            track.seen |= Seen.MANY_WORKERS
        status = record.status
        if record.action == GRAB and record.worker == track.worker:
            track.seen |= Seen.GRABBED
        if status and record.worker == track.worker:
            track.first_answer_ms = min(track.first_answer_ms, record.answered_ms)
        track.seen |= seen_of(record)
        if status in (200, 201):
            self._note_voucher(track, record)
        elif record.code in DISTURBED_CODES:
            self.disturbed.setdefault(record.drop_id, record.code)
        return track

    def of(self, record: Answered) -> Track | None:
        """The track of a record, once it was observed."""
        track = self.tracks.get(record.out_request_no)
        while track is not None:
            if track.person_token == record.person_token and track.drop_id == record.drop_id:
                return track
            track = track.other
        return None

    def __iter__(self) -> Iterator[tuple[str, Track]]:
        for number, first in self.tracks.items():
            track: Track | None = first
            while track is not None:
                yield number, track
                track = track.other

    def _open(self, record: Answered) -> Track:
        number = record.out_request_no
        track = Track(record, self.tracks.get(number))
        keep = self._strings.setdefault
        track.drop_id = keep(record.drop_id, record.drop_id)
        track.worker = keep(record.worker, record.worker)
        self.tracks[number] = track
        return track

    def _note_voucher(self, track: Track, record: Answered) -> None:
        if not track.voucher_digest:
            track.voucher_digest = exact_digest(record.voucher)
        if record.worker == track.worker:
            track.voucher_ms = min(track.voucher_ms, record.answered_ms)
        self.granted[track.drop_id, record.worker].note(record.answered_ms, record.out_request_no)


_OF_CODE: Final = {
    "sold_out": Seen.REFUSED | Seen.SOLD_OUT,
    "person_limit": Seen.REFUSED | Seen.PERSON_LIMIT,
    "request_mismatch": Seen.REFUSED | Seen.MISMATCH,
}
_OF_STATUS: Final = {
    0: Seen.UNCERTAIN,
    200: Seen.VOUCHER,
    201: Seen.VOUCHER,
    202: Seen.PENDING | Seen.UNCERTAIN,
    403: Seen.REFUSED,
    404: Seen.REFUSED,
    409: Seen.REFUSED,
}


def seen_of(record: Answered) -> int:
    """The flags of one record."""
    status = record.status
    seen = _OF_STATUS.get(status, 0) | _OF_CODE.get(record.code, 0)
    if status:
        seen |= Seen.ANSWERED
    if status >= 500 and record.code not in NOTHING_TAKEN:  # noqa: PLR2004 - server errors
        seen |= Seen.UNCERTAIN
    if is_final(record):
        seen |= Seen.FINAL
    return seen


def is_final(record: Answered) -> bool:
    """Whether this refusal says that the same number can never be granted."""
    return record.code in FINAL_CODES and record.retryable is False


def outcome_of(record: Answered) -> str:
    """One word for an answer, for counts and plots."""
    status = record.status
    if status == 0:
        return "abandoned" if record.code == ABANDONED else "unanswered"
    if record.action != GRAB and status in (200, 201):
        return "looked up"
    return {200: "repeated", 201: "issued", 202: "pending"}.get(status) or record.code or f"http {status}"
