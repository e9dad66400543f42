"""Events as a partner reads them: CloudEvents 1.0, typed as far as a receiver acts on them."""

from collections.abc import Iterator
from typing import Any, Final, Literal

import msgspec

from couponsvc.client.answers import Voucher

VOUCHER_ISSUED: Final = "couponsvc.voucher.issued.v1"
DROP_DEFINED: Final = "couponsvc.drop.defined.v1"
DROP_OPENED: Final = "couponsvc.drop.opened.v1"
DROP_PAUSED: Final = "couponsvc.drop.paused.v1"
DROP_RESUMED: Final = "couponsvc.drop.resumed.v1"
DROP_SOLD_OUT: Final = "couponsvc.drop.sold_out.v1"
DROP_RESTOCKED: Final = "couponsvc.drop.restocked.v1"
DROP_ENDED: Final = "couponsvc.drop.ended.v1"
DROP_CLOSED: Final = "couponsvc.drop.closed.v1"
DROP_WITHDRAWN: Final = "couponsvc.drop.withdrawn.v1"
WEBHOOK_TEST: Final = "couponsvc.webhook.test.v1"
"""Sent to whoever asked for it; no subscription names it."""
EVENT_TYPES: Final = (
    VOUCHER_ISSUED,
    DROP_DEFINED,
    DROP_OPENED,
    DROP_PAUSED,
    DROP_RESUMED,
    DROP_SOLD_OUT,
    DROP_RESTOCKED,
    DROP_ENDED,
    DROP_CLOSED,
    DROP_WITHDRAWN,
)
"""What a subscription may name."""
BEGINNING: Final = ""
"""The cursor before the first event."""


class MalformedEvent(ValueError):
    """It is no event of ours: not JSON, or a member is missing. The message quotes nothing of it."""


class IssuedVouchers(msgspec.Struct, frozen=True):
    """What a `VOUCHER_ISSUED` event tells: 1 to 500 vouchers of one drop, in order of `seq`."""

    drop_id: str
    receipts: tuple[msgspec.Raw, ...] = msgspec.field(name="vouchers")
    """Each voucher byte by byte as its grab was answered."""

    @property
    def vouchers(self) -> tuple[Voucher, ...]:
        """The same, typed."""
        return tuple(_voucher_decoder.decode(receipt) for receipt in self.receipts)


class Event(msgspec.Struct, frozen=True):
    """One event. The same `id` is always the same event: whoever has it may drop the second."""

    specversion: Literal["1.0"]
    id: str
    type: str
    """One of those above, or one that this version does not know yet."""
    source: str
    time: str
    data: msgspec.Raw
    """JSON, byte by byte as it was sent."""
    subject: str = ""
    """The partner."""
    sequence: str | None = None

    @property
    def sequence_no(self) -> int | None:
        """1, 2, 3 … of this partner in this drop, without gaps; None where no drop is concerned."""
        return None if self.sequence is None else int(self.sequence)

    @property
    def drop_id(self) -> str | None:
        """The drop concerned, if one is."""
        return _concerned_decoder.decode(self.data).drop_id

    def details(self) -> dict[str, Any]:
        """`data` as plain objects."""
        found = msgspec.json.decode(self.data)
        return found if isinstance(found, dict) else {}

    def issued(self) -> IssuedVouchers | None:
        """The vouchers that it tells of; None for every other type.

        Raises:
            MalformedEvent: it names this type and has no vouchers.
        """
        if self.type != VOUCHER_ISSUED:
            return None
        try:
            return _issued_decoder.decode(self.data)
        except msgspec.MsgspecError as error:
            raise MalformedEvent(f"{self.id} has no vouchers: {error}") from error


class EventPage(msgspec.Struct, frozen=True):
    """One page of the feed. Handle it and keep `next` in one transaction: then nothing is heard twice."""

    events: tuple[Event, ...]
    next: str
    """The cursor to go on with."""

    def with_cursors(self, asked: str) -> Iterator[tuple[str, Event]]:
        """Each event with the cursor that may be kept once it is handled.

        Cursors come with pages: inside of one, that is the cursor the page was asked with.
        """
        last = len(self.events) - 1
        for place, event in enumerate(self.events):
            yield (self.next if place == last else asked), event


class _Concerned(msgspec.Struct):
    drop_id: str | None = None


_concerned_decoder = msgspec.json.Decoder(_Concerned)
_voucher_decoder = msgspec.json.Decoder(Voucher)
_issued_decoder = msgspec.json.Decoder(IssuedVouchers)
_event_decoder = msgspec.json.Decoder(Event)


def read_event(body: bytes) -> Event:
    """Read one event.

    Raises:
        MalformedEvent: it is none.
    """
    try:
        return _event_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MalformedEvent(f"no event of ours: {error}") from error
