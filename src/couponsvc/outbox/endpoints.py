"""What a relay knows of the endpoints it delivers to: their live secrets, and how much they get at once."""

import random
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
SLOW_MS: Final = 1_000
"""An endpoint whose last answer, or silence, took longer is slow."""
SLOW_MAX_COUNT: Final = limits.DELIVERIES_IN_FLIGHT_MAX_COUNT // 2
"""At all slow endpoints together: the other half is for those that answer."""
WINDOWS_MAX_COUNT: Final = 4 * limits.DELIVERIES_IN_FLIGHT_MAX_COUNT
"""Endpoints remembered; each turn of leasing hands them to Postgres, which takes some 50 µs."""


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
    DELIVERIES_PER_ENDPOINT_MAX_COUNT, and after a failure one at a time. All that are slow share
    SLOW_MAX_COUNT. So those that hang, refuse or drip take a bounded part of what all share.
    """

    def __init__(self) -> None:
        self._windows: Final[dict[int, int]] = {}
        self._in_flight: Final[dict[int, int]] = {}
        self._slow: Final[set[int]] = set()
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
        """How many more may start at each endpoint that is known; elsewhere it is ROOM_FIRST."""
        of_slow = self._of_slow()
        rooms = {number: window - self._in_flight.get(number, 0) for number, window in self._windows.items()}
        return {
            number: max(0, min(room, of_slow.get(number, 0)) if number in self._slow else room)
            for number, room in rooms.items()
        }

    def _of_slow(self) -> dict[int, int]:
        """What is left for slow endpoints, in equal parts; where that is too little, for any of them."""
        left = SLOW_MAX_COUNT - sum(self._in_flight.get(number, 0) for number in self._slow)
        if left <= 0 or not self._slow:
            return {}
        lucky = random.sample(sorted(self._slow), min(left, len(self._slow)))
        return dict.fromkeys(lucky, max(1, left // len(self._slow)))

    def take(self, lease: Lease) -> None:
        """A delivery starts."""
        number = lease.subscription_no
        self._windows.setdefault(number, ROOM_FIRST)
        self._in_flight[number] = self._in_flight.get(number, 0) + 1
        self._in_flight_count += 1
        self._probe_count += lease.probe

    def note(self, lease: Lease, *, accepted: bool, took_ms: int) -> None:
        """Learn from an outcome; before `leave`."""
        number = lease.subscription_no
        most = limits.DELIVERIES_PER_ENDPOINT_MAX_COUNT
        self._windows[number] = min(self._windows[number] + 1, most) if accepted else 1
        if took_ms > SLOW_MS:
            self._slow.add(number)
        else:
            self._slow.discard(number)

    def leave(self, lease: Lease) -> None:
        """A delivery has ended and is noted."""
        number = lease.subscription_no
        left = self._in_flight.pop(number) - 1
        if left:
            self._in_flight[number] = left
        elif len(self._windows) > WINDOWS_MAX_COUNT:
            del self._windows[number]
            self._slow.discard(number)
        self._in_flight_count -= 1
        self._probe_count -= lease.probe
