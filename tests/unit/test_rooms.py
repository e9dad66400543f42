"""How much of a relay's room an endpoint gets."""

from datetime import UTC, datetime

from couponsvc import limits
from couponsvc.outbox.endpoints import ROOM_FIRST, SLOW_MAX_COUNT, SLOW_MS, WINDOWS_MAX_COUNT, Rooms
from couponsvc.outbox.leasing import Lease

NOW = datetime(2026, 10, 1, tzinfo=UTC)
MOST = limits.DELIVERIES_PER_ENDPOINT_MAX_COUNT


def lease(subscription_no: int, *, probe: bool = False) -> Lease:
    return Lease(subscription_no, 1, 0, NOW, probe, probe, 1, "https://x.test/", b"", None, None, 1, NOW)


def deliver(rooms: Rooms, subscription_no: int, *, accepted: bool = True, took_ms: int = 5) -> None:
    rooms.take(lease(subscription_no))
    rooms.note(lease(subscription_no), accepted=accepted, took_ms=took_ms)
    rooms.leave(lease(subscription_no))


def test_an_endpoint_earns_room_with_every_success_and_loses_it_with_a_failure() -> None:
    rooms = Rooms()
    for successes in range(1, 10):
        deliver(rooms, 7)
        assert rooms.by_endpoint() == {7: min(ROOM_FIRST + successes, MOST)}
    deliver(rooms, 7, accepted=False)
    assert rooms.by_endpoint() == {7: 1}


def test_what_is_under_way_is_taken_off() -> None:
    rooms = Rooms()
    for _ in range(ROOM_FIRST):
        rooms.take(lease(7))
    assert rooms.by_endpoint() == {7: 0}
    assert rooms.left == limits.DELIVERIES_IN_FLIGHT_MAX_COUNT - ROOM_FIRST
    rooms.leave(lease(7))
    assert rooms.by_endpoint() == {7: 1}


def test_all_slow_endpoints_together_leave_half_of_the_room_to_the_others() -> None:
    rooms = Rooms()
    deliver(rooms, 1)
    slow = range(100, 300)
    for number in slow:
        for _ in range(10):
            deliver(rooms, number, took_ms=SLOW_MS + 1)
    started = 0
    while any(more := {n: room for n, room in rooms.by_endpoint().items() if n in slow and room}):
        for number in list(more):
            rooms.take(lease(number))
            started += 1
    assert started == SLOW_MAX_COUNT
    assert rooms.by_endpoint()[1] == ROOM_FIRST + 1
    assert rooms.left == limits.DELIVERIES_IN_FLIGHT_MAX_COUNT - SLOW_MAX_COUNT


def test_an_endpoint_that_answers_quickly_again_is_not_slow_any_more() -> None:
    rooms = Rooms()
    for number in range(SLOW_MAX_COUNT + 1):
        rooms.take(lease(number))
        rooms.note(lease(number), accepted=True, took_ms=SLOW_MS + 1)
    assert set(rooms.by_endpoint().values()) == {0}, "they are more than may be, already"
    rooms.note(lease(0), accepted=True, took_ms=SLOW_MS)
    assert rooms.by_endpoint()[0] > 0


def test_probes_are_counted_until_they_leave() -> None:
    rooms = Rooms()
    rooms.take(lease(7, probe=True))
    assert rooms.probes_left(3) == 2
    rooms.leave(lease(7, probe=True))
    assert rooms.probes_left(3) == 3


def test_endpoints_are_not_remembered_for_ever() -> None:
    rooms = Rooms()
    for number in range(3 * WINDOWS_MAX_COUNT):
        deliver(rooms, number, took_ms=SLOW_MS + 1)
    assert len(rooms.by_endpoint()) <= WINDOWS_MAX_COUNT + 1
