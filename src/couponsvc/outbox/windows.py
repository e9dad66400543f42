"""What a turn of the sequencer tells, and in which order. Pure: no input, no output."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from couponsvc import limits
from couponsvc.outbox.rendering import compact
from couponsvc.outbox.standing import Change, Standing
from couponsvc.values.drop import DropState, DropStatus
from couponsvc.values.event import EventType, subscription_id
from couponsvc.values.moment import rfc3339, unix_ms

TURN_VOUCHERS_MAX_COUNT: Final = 100_000
"""Vouchers after which a turn ends: a fifth of a second of Postgres. One outbox row always fits."""


class OutboxRow(NamedTuple):
    """A row of the outbox, as `take_rows` reads it (its first columns)."""

    outbox_no: int
    type: str
    drop_no: int | None
    subscription_no: int | None
    partner_no: int | None
    """To whom alone it is told; None: to all of the drop."""
    first_seq: int | None
    last_seq: int | None
    data: str
    occurred_at: datetime


class Window(NamedTuple):
    """When a drop is open, for what stock, and what operators decided of it."""

    opens_at: datetime
    closes_at: datetime
    quantity: int
    status: int
    """A `DropStatus`."""

    @property
    def closed(self) -> bool:
        """By an operator, for good: that has an event of its own, and its clock runs no more."""
        return self.status == DropStatus.CLOSED


@dataclass(slots=True)
class Told:
    """How far partners were told of a drop."""

    told_seq: int
    opened: bool
    ended: bool


class Telling(NamedTuple):
    """What becomes one event for each partner that may know; the columns of `fan_out`."""

    kind: EventType
    drop_no: int | None
    subscription_no: int | None
    partner_no: int | None
    first_seq: int | None
    last_seq: int | None
    data: str
    occurred_at: datetime


@dataclass(slots=True)
class Turn:
    """What one transaction tells."""

    now: datetime
    told: dict[int, Told]
    """By drop: how far, when the turn is done."""
    tellings: list[Telling] = field(default_factory=list)
    outbox_nos: list[int] = field(default_factory=list)
    """Rows that are told by it and leave the outbox."""
    misfits: dict[int, str] = field(default_factory=dict)
    """By drop: why its rows stay where they are."""
    standings: dict[int, Standing] = field(default_factory=dict)
    """By drop of which something else than vouchers is told: how it stands at this place."""
    _last_issues: dict[int, int] = field(default_factory=dict)
    """By drop: the place of a telling of vouchers that nothing else of the drop has followed."""

    def tell(self, telling: Telling) -> None:
        """Add a telling; what follows in its drop comes after it."""
        if telling.drop_no is not None:
            self._last_issues.pop(telling.drop_no, None)
        self.tellings.append(telling)

    def state(self, drop_no: int) -> DropState:
        """How a drop stands after what was told of it."""
        told = self.told[drop_no]
        standing = self.standings[drop_no]
        return standing.state(told_seq=told.told_seq, opened=told.opened, ended=told.ended)

    def tell_vouchers(self, drop_no: int, first_seq: int, last_seq: int, occurred_at: datetime) -> None:
        """Add the vouchers of a commit: to the telling of the commit before, as far as they fit, then anew.

        A full event costs the relay, Postgres and the receiver a fraction of what a commit's own one
        does: half of a delivery's cost does not depend on how many vouchers it carries.
        """
        place = self._last_issues.get(drop_no)
        if place is not None:
            before = self.tellings[place]
            assert before.first_seq is not None, "it tells of vouchers"  # noqa: S101
            last = min(last_seq, before.first_seq + limits.EVENT_VOUCHERS_MAX_COUNT - 1)
            if last >= first_seq:
                self.tellings[place] = before._replace(last_seq=last, occurred_at=occurred_at)
                first_seq = last + 1
        for first in range(first_seq, last_seq + 1, limits.EVENT_VOUCHERS_MAX_COUNT):
            last = min(first + limits.EVENT_VOUCHERS_MAX_COUNT - 1, last_seq)
            self.tell(Telling(EventType.VOUCHER_ISSUED, drop_no, None, None, first, last, "{}", occurred_at))
            self._last_issues[drop_no] = len(self.tellings) - 1


def plan_turn(
    rows: Sequence[OutboxRow],
    told: dict[int, Told],
    windows: Mapping[int, Window],
    now: datetime,
) -> Turn:
    """Put a turn together: rows in their order, openings before what happens in a window, ends last.

    Args:
        rows: Of the outbox, in order of their numbers.
        told: Of every drop in `rows` and `windows`; is moved on.
        windows: Of the drops whose window has opened or ended untold, and of those in `rows` that
            tell of something else than vouchers, or of vouchers although nobody was told of the opening.
            Read after `rows`, so that whatever they do not show yet has a row of its own to come.
        now: The moment.
    """
    turn = Turn(now, told)
    changes = _changes(turn, rows)
    _stand_before(turn, rows, changes, windows)
    voucher_count = 0
    for row in rows:
        if row.drop_no in turn.misfits:
            continue
        if voucher_count >= TURN_VOUCHERS_MAX_COUNT:
            break
        if row.drop_no is None:
            _tell_test(turn, row)
        elif row.first_seq is not None and row.last_seq is not None:
            voucher_count += row.last_seq - row.first_seq + 1
            _tell_vouchers(turn, row, (row.drop_no, row.first_seq, row.last_seq), windows)
        else:
            _tell_drop(turn, row, row.drop_no, changes[row.outbox_no], windows[row.drop_no])
    for drop_no, window in windows.items():
        if drop_no not in turn.misfits:
            _tell_window(turn, drop_no, window)
    return turn


def _changes(turn: Turn, rows: Sequence[OutboxRow]) -> dict[int, Change]:
    """What rows tell of drops besides vouchers, by `outbox_no`."""
    changes: dict[int, Change] = {}
    for row in rows:
        if row.drop_no is not None and row.first_seq is None:
            try:
                data = msgspec.json.decode(row.data, type=dict[str, Any])
            except msgspec.ValidationError:
                turn.misfits[row.drop_no] = f"row {row.outbox_no} holds no members"
            else:
                changes[row.outbox_no] = (EventType(row.type), data)
    return changes


def _stand_before(
    turn: Turn, rows: Sequence[OutboxRow], changes: Mapping[int, Change], windows: Mapping[int, Window]
) -> None:
    """Find out how each drop stood before its first row."""
    of_drops = defaultdict[int, list[Change]](list)
    for row in rows:
        if row.drop_no is not None and row.outbox_no in changes:
            of_drops[row.drop_no].append(changes[row.outbox_no])
    for drop_no, window in windows.items():
        now_stands = DropStatus(window.status), window.quantity
        turn.standings[drop_no] = Standing.before(of_drops[drop_no], *now_stands)


def _tell_vouchers(
    turn: Turn, row: OutboxRow, vouchers: tuple[int, int, int], windows: Mapping[int, Window]
) -> None:
    drop_no, first_seq, last_seq = vouchers
    told = turn.told[drop_no]
    if first_seq != told.told_seq + 1:
        turn.misfits[drop_no] = f"row {row.outbox_no} tells from {first_seq}, partners know {told.told_seq}"
        return
    if drop_no in windows:
        _tell_opening(turn, drop_no, windows[drop_no], row.occurred_at)
    turn.tell_vouchers(drop_no, first_seq, last_seq, row.occurred_at)
    told.told_seq = last_seq
    turn.outbox_nos.append(row.outbox_no)


def _tell_drop(turn: Turn, row: OutboxRow, drop_no: int, change: Change, window: Window) -> None:
    kind, said = change
    if window.opens_at <= row.occurred_at and kind is not EventType.DROP_DEFINED:  # what opens comes first
        _tell_opening(turn, drop_no, window, row.occurred_at)
    turn.standings[drop_no].follow(kind, said)
    data = {name: value for name, value in said.items() if name != "drop_id"}
    if kind is not EventType.DROP_WITHDRAWN:  # how it goes on does not concern its partner any more
        data["state"] = turn.state(drop_no)
    turn.tell(Telling(kind, drop_no, None, row.partner_no, None, None, compact(data), row.occurred_at))
    turn.outbox_nos.append(row.outbox_no)


def _tell_test(turn: Turn, row: OutboxRow) -> None:
    assert row.subscription_no is not None, "a row without a drop concerns a subscription"  # noqa: S101
    data = compact({"subscription_id": subscription_id(row.subscription_no)})
    kind = EventType(row.type)
    turn.tell(Telling(kind, None, row.subscription_no, None, None, None, data, row.occurred_at))
    turn.outbox_nos.append(row.outbox_no)


def _tell_window(turn: Turn, drop_no: int, window: Window) -> None:
    """Tell what the clock says of a drop, after everything that happened in it."""
    if window.closed or turn.now < window.opens_at:
        return
    _tell_opening(turn, drop_no, window, turn.now)
    told = turn.told[drop_no]
    if window.closes_at <= turn.now and not told.ended:
        told.ended = True
        data = {
            "closes_at": rfc3339(unix_ms(window.closes_at)),
            "quantity": window.quantity,
            "state": turn.state(drop_no),
        }
        _tell_of_clock(turn, EventType.DROP_ENDED, drop_no, data, window.closes_at)


def _tell_opening(turn: Turn, drop_no: int, window: Window, moment: datetime) -> None:
    """Tell of an opening that was not told yet; an end that was told and then put off opens anew."""
    told = turn.told[drop_no]
    again = told.opened and told.ended and turn.now < window.closes_at
    if told.opened and not again:
        return
    told.opened, told.ended = True, False
    data = {
        "opens_at": rfc3339(unix_ms(window.opens_at)),
        "closes_at": rfc3339(unix_ms(window.closes_at)),
        "quantity": window.quantity,
        "state": turn.state(drop_no),
    }
    _tell_of_clock(turn, EventType.DROP_OPENED, drop_no, data, moment if again else window.opens_at)


def _tell_of_clock(
    turn: Turn, kind: EventType, drop_no: int, data: dict[str, Any], occurred_at: datetime
) -> None:
    turn.tell(Telling(kind, drop_no, None, None, None, None, compact(data), occurred_at))
