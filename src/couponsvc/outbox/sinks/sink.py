"""What it takes to be fed with events, as a broker is: one class per kind of broker.

A sink is told of every event of every partner, in the order of their numbers, at least once.
Whoever consumes from a broker de-duplicates by the CloudEvents `id`.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from couponsvc.values.event import Event

NO_DROP: Final = "-"
"""In the place of a drop's id, where an event concerns none. No slug begins with a dash."""
DROPS: Final = "/v1/drops/"
"""What the CloudEvents `source` of a drop's event begins with."""


class Sink(Protocol):
    """A broker as the feeder sees it. Used by one task; after an error it is closed and opened again."""

    @property
    def name(self) -> str:
        """Of the row in `sinks`, in metrics and logs: `nats`, `kafka`."""

    async def open(self) -> None:
        """Connect, and make what is missing at the broker.

        Raises:
            BrokerAway, BrokerRefuses: see there.
        """

    async def publish(self, events: Sequence[Event]) -> int:
        """Store events, in this order; returns when the broker has said of each that it has it.

        Repeating a call is harmless.

        Returns:
            How many of them the broker knew already.

        Raises:
            BrokerAway, BrokerRefuses: any part of the events may be stored nevertheless.
        """

    async def close(self) -> None:
        """Disconnect; never raises, bounded in time, and may be called twice."""


class BrokerAway(Exception):
    """The broker cannot be reached, or did not confirm in time; it is tried again by itself."""


class BrokerRefuses(Exception):
    """The broker answers, but will not store: an operator must look. It is tried again all the same."""


class ExtraMissing(Exception):
    """A broker is configured whose client is not installed; names the extra to install."""

    def __init__(self, setting: str, extra: str) -> None:
        super().__init__(
            f"{setting} is set, but its client is not installed: pip install 'couponsvc[{extra}]'"
        )


class Address(NamedTuple):
    """Whom an event is for and what it is about, by the names that partners know."""

    partner_id: str
    drop_id: str
    """`NO_DROP` where it concerns none."""


class _Envelope(msgspec.Struct):
    """The part of a CloudEvent that an address is made of; the rest is skipped over."""

    subject: str
    source: str


_ENVELOPES: Final = msgspec.json.Decoder(_Envelope)


def address_of(event: Event) -> Address:
    """Read an event's address from what is sent, so that subject and content cannot disagree.

    Raises:
        msgspec.DecodeError: the body is not one of our CloudEvents.
    """
    envelope = _ENVELOPES.decode(event.body)
    drop_id = envelope.source.removeprefix(DROPS) if envelope.source.startswith(DROPS) else NO_DROP
    return Address(envelope.subject, drop_id)
