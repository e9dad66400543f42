"""Events: what partners hear of, and how the things they are about are named.

An event is a CloudEvent 1.0. Its `id` is `evt_<event_no>`; `event_no` counts all events of an
installation without gaps, each drop's in the order of its commits. An event belongs to one partner.
"""

import enum
from typing import Final, NamedTuple


class EventType(enum.StrEnum):
    """Every kind of event, by the name it has in the outbox.

    Kinds to come (`voucher.redeemed`, `voucher.returned`, `voucher.expired`, `voucher.reclaimed`)
    add a member, a schema and, where they tell of vouchers, nothing else.
    """

    VOUCHER_ISSUED = "voucher.issued"
    DROP_DEFINED = "drop.defined"
    DROP_OPENED = "drop.opened"
    DROP_PAUSED = "drop.paused"
    DROP_RESUMED = "drop.resumed"
    DROP_SOLD_OUT = "drop.sold_out"
    DROP_RESTOCKED = "drop.restocked"
    DROP_ENDED = "drop.ended"
    DROP_CLOSED = "drop.closed"
    DROP_WITHDRAWN = "drop.withdrawn"
    WEBHOOK_TEST = "webhook.test"

    @property
    def public(self) -> str:
        """The CloudEvents `type`: `couponsvc.voucher.issued.v1`. A new shape of data is a new version."""
        return f"couponsvc.{self.value}.v1"


TYPE_OF_PUBLIC: Final = {kind.public: kind for kind in EventType}
SUBSCRIBABLE: Final = tuple(kind.public for kind in EventType if kind is not EventType.WEBHOOK_TEST)
"""What a subscription may name. A test event reaches whoever asked for it, whatever that one names."""

EVENT_PREFIX: Final = "evt_"
SUBSCRIPTION_PREFIX: Final = "sub_"
EVENT_NO_MAX: Final = 2**63 - 1
SUBSCRIPTION_NO_MAX: Final = 2**31 - 1


class Event(NamedTuple):
    """An event as it is sent: the same bytes for the same number, for ever."""

    event_no: int
    partner_no: int
    drop_no: int | None
    """None: a test of a webhook."""
    kind: EventType
    voucher_count: int
    occurred_ms: int
    body: bytes
    """CloudEvents JSON (structured mode), UTF-8, one line."""

    @property
    def event_id(self) -> str:
        """CloudEvents `id`."""
        return event_id(self.event_no)


def event_id(event_no: int) -> str:
    """Name an event."""
    return f"{EVENT_PREFIX}{event_no}"


def parse_event_id(text: str) -> int | None:
    """`event_no` of an event's name, or None where it is not one of ours."""
    return _number_after(EVENT_PREFIX, text, EVENT_NO_MAX)


def subscription_id(subscription_no: int) -> str:
    """Name a subscription. Derived, like the names of vouchers; another partner's is 404."""
    return f"{SUBSCRIPTION_PREFIX}{subscription_no}"


def parse_subscription_id(text: str) -> int | None:
    """`subscription_no` of a subscription's name, or None where it is not one of ours."""
    return _number_after(SUBSCRIPTION_PREFIX, text, SUBSCRIPTION_NO_MAX)


def _number_after(prefix: str, text: str, largest: int) -> int | None:
    digits = text.removeprefix(prefix)
    if not (text.startswith(prefix) and digits.isascii() and digits.isdigit() and digits[0] != "0"):
        return None
    return number if len(digits) <= len(str(largest)) and (number := int(digits)) <= largest else None
