"""What the stages hand each other in Redis: batch, stream entry, confirmation, acknowledgement.

MessagePack, each with a version, so that processes can be deployed separately.
Lua reads and writes the same bytes with `cmsgpack` (tests/contract proves it).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from couponsvc.values.grab import Grab
from couponsvc.values.rate import Rate

ENTRY_VERSION: Final = b"1"
CONFIRMATION_VERSION: Final = 1

_encode = msgspec.msgpack.Encoder().encode


class Origin(NamedTuple):
    """Who waits for a batch: the API process, and its number for the batch."""

    origin: str
    """`NOBODY` where no grab of the batch waits for its commit."""
    batch_no: int


NOBODY: Final = ""
"""Origin of a batch whose confirmations need not be sent."""


class DropEpoch(NamedTuple):
    """A drop of a batch with the epoch under which it was decided."""

    drop_no: int
    epoch: int


class Grant(NamedTuple):
    """One grab that the gate said yes to, as `grab_batch.lua` writes it onto the stream."""

    drop_index: int
    """1-based index into the entry's drops."""
    holder: str
    out_request_no: str
    ordinal: int
    """Which voucher of the person this is, counted from 1."""
    place: int
    """0-based position of the grab in its batch: the waiter's address."""
    channel: str
    region: str


class Entry(NamedTuple):
    """One stream entry: all grants of one batch."""

    entry_id: str
    origin: Origin
    granted_ms: int
    """When the gate decided, by the clock of Redis."""
    drops: Sequence[DropEpoch]
    grants: Sequence[Grant]


class Confirmation(NamedTuple):
    """What the ledger says of one grant, addressed to the waiter of its batch."""

    place: int
    verdict: int
    """A `values.outcome.Verdict`."""
    seq: int
    """Of the standing voucher (COMMITTED, HELD), else 0."""
    issued_ms: int
    code: str
    out_request_no: str
    """Of the standing voucher: differs from the grab's where the verdict is HELD."""


ConfirmationRow = tuple[int, int, int, int, str, str]
"""The values of a `Confirmation`; where thousands a second are written, nobody needs their names."""


class ConfirmationBatch(NamedTuple):
    """All confirmations of one stream entry."""

    version: int
    batch_no: int
    confirmations: Sequence[Confirmation]


class MalformedEntry(ValueError):
    """A stream entry that this version cannot read; no grant of it may be guessed at."""


_origin_decoder = msgspec.msgpack.Decoder(Origin)
_drops_decoder = msgspec.msgpack.Decoder(list[DropEpoch])
_grants_decoder = msgspec.msgpack.Decoder(list[Grant])
_confirmation_decoder = msgspec.msgpack.Decoder(ConfirmationBatch)


def encode_origin(origin: str, batch_no: int) -> bytes:
    """Origin header of a batch; the gate passes it through unread."""
    return _encode((origin, batch_no))


def encode_drops(drops: Sequence[tuple[int, int]]) -> bytes:
    """`(drop_no, epoch)` of every drop in a batch; the gate copies the bytes to the entry."""
    return _encode(drops)


GrabRow = tuple[int, str, str, str, str] | tuple[int, str, str, str, str, int]
"""`(1-based index into the batch's drops, holder, out_request_no, channel, region)`, and of a limited
partner's grab the 1-based index into the batch's rates."""


def grab_row(drop_index: int, grab: Grab) -> GrabRow:
    """The row of one grab."""
    return (drop_index, grab.holder, grab.out_request_no, grab.channel, grab.region)


def limited_row(drop_index: int, grab: Grab, rate_index: int) -> GrabRow:
    """The row of a limited partner's grab."""
    return (drop_index, grab.holder, grab.out_request_no, grab.channel, grab.region, rate_index)


def encode_grabs(grabs: Sequence[GrabRow]) -> bytes:
    """Grabs of a batch, for the gate."""
    return _encode(grabs)


def encode_rates(rates: Iterable[Rate]) -> bytes:
    """Rates of a batch's limited partners, for the gate."""
    return _encode([(rate.interval_us, rate.burst_count) for rate in rates])


def decode_entry(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Entry:
    """Read a stream entry.

    Raises:
        MalformedEntry: unknown version or unreadable fields.
    """
    if fields.get(b"v") != ENTRY_VERSION:
        message = f"stream entry {entry_id!r} has version {fields.get(b'v')!r}, this reads {ENTRY_VERSION!r}"
        raise MalformedEntry(message)
    try:
        return Entry(
            entry_id.decode(),
            _origin_decoder.decode(fields[b"o"]),
            int(fields[b"t"]),
            _drops_decoder.decode(fields[b"d"]),
            _grants_decoder.decode(fields[b"g"]),
        )
    except (KeyError, ValueError, msgspec.MsgspecError) as error:
        message = f"stream entry {entry_id!r} cannot be read: {error}"
        raise MalformedEntry(message) from error


def encode_confirmations(batch_no: int, confirmations: Sequence[ConfirmationRow]) -> bytes:
    """One message for the waiter of one entry."""
    return _encode((CONFIRMATION_VERSION, batch_no, confirmations))


def decode_confirmations(message: bytes) -> ConfirmationBatch:
    """Read a confirmation message.

    Raises:
        msgspec.MsgspecError: not a confirmation message of ours.
    """
    return _confirmation_decoder.decode(message)
