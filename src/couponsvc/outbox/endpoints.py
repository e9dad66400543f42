"""What a relay knows of the endpoints it delivers to: their live secrets, and how much they get at once."""

from collections import OrderedDict
from datetime import datetime
from typing import Final

from couponsvc import limits
from couponsvc.outbox.leasing import Lease
from couponsvc.outbox.subscriptions import SECRET_PURPOSE
from couponsvc.support.sealing import MasterKey
from couponsvc.values.event import subscription_id

SECRETS_MAX_COUNT: Final = 4_096
"""Opened secrets in memory: two for each of two thousand endpoints; more are opened again each time."""
ROOM_FIRST: Final = 2
"""At once at an endpoint of which nothing is known: one that hangs takes so much for 15 s, not eight."""
WINDOWS_MAX_COUNT: Final = limits.DELIVERIES_IN_FLIGHT_MAX_COUNT
"""Endpoints remembered; each turn of leasing hands them to Postgres."""


class SecretBook:
    """Opens sealed secrets, each once."""

    def __init__(self, master_key: MasterKey) -> None:
        self._master_key: Final = master_key
        self._opened: Final[OrderedDict[tuple[int, bytes], str]] = OrderedDict()

    def live(self, lease: Lease, now: datetime) -> list[str]:
        """Secrets that sign for an endpoint now, the newest first.

        Raises:
            couponsvc.support.sealing.CannotOpen: sealed with another master key.
        """
        sealed = [lease.sealed_secret]
        previous, until = lease.previous_sealed_secret, lease.previous_until
        if previous is not None and until is not None and now < until:
            sealed.append(previous)
        return [self._open(lease.subscription_no, secret) for secret in sealed]

    def _open(self, subscription_no: int, sealed: bytes) -> str:
        key = (subscription_no, sealed)
        secret = self._opened.get(key)
        if secret is None:
            owner = subscription_id(subscription_no)
            secret = self._opened[key] = self._master_key.open(sealed, SECRET_PURPOSE, owner).decode()
            if len(self._opened) > SECRETS_MAX_COUNT:
                self._opened.popitem(last=False)
        self._opened.move_to_end(key)
        return secret


class Rooms:
    """How many deliveries may be under way, in all and at each endpoint.

    An endpoint starts small, gets one more with every success, up to
    DELIVERIES_PER_ENDPOINT_MAX_COUNT, and after a failure one at a time: those that hang or refuse
    take little of what all share.
    """

    def __init__(self) -> None:
        self._windows: Final[dict[int, int]] = {}
        self._in_flight: Final[dict[int, int]] = {}
        self._in_flight_count = 0
        self._probe_count = 0

    @property
    def in_flight_count(self) -> int:
        """Deliveries under way, including those whose outcome is not noted yet."""
        return self._in_flight_count

    @property
    def left(self) -> int:
        """How many more may start."""
        return limits.DELIVERIES_IN_FLIGHT_MAX_COUNT - self._in_flight_count

    def probes_left(self, most: int) -> int:
        """How many more probes may start, where `most` may be under way."""
        return most - self._probe_count

    def by_endpoint(self) -> dict[int, int]:
        """How many more may start at each endpoint whose window is known."""
        return {subscription_no: self.room_at(subscription_no) for subscription_no in self._windows}

    def room_at(self, subscription_no: int) -> int:
        """How many more may start at an endpoint."""
        window = self._windows.get(subscription_no, ROOM_FIRST)
        return max(0, window - self._in_flight.get(subscription_no, 0))

    def take(self, lease: Lease) -> None:
        """A delivery starts."""
        subscription_no = lease.subscription_no
        self._windows.setdefault(subscription_no, ROOM_FIRST)
        self._in_flight[subscription_no] = self._in_flight.get(subscription_no, 0) + 1
        self._in_flight_count += 1
        self._probe_count += lease.probe

    def leave(self, lease: Lease) -> None:
        """A delivery has ended and is noted."""
        subscription_no = lease.subscription_no
        left = self._in_flight.pop(subscription_no) - 1
        if left:
            self._in_flight[subscription_no] = left
        elif len(self._windows) > WINDOWS_MAX_COUNT:
            del self._windows[subscription_no]
        self._in_flight_count -= 1
        self._probe_count -= lease.probe

    def note(self, lease: Lease, *, accepted: bool) -> None:
        """Learn from an outcome; before `leave`."""
        window = self._windows[lease.subscription_no]
        self._windows[lease.subscription_no] = (
            min(window + 1, limits.DELIVERIES_PER_ENDPOINT_MAX_COUNT) if accepted else 1
        )
