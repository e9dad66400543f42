"""What a turn of the sequencer tells: commits of a drop as full events, everything else in its place."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from couponsvc import limits
from couponsvc.outbox.rendering import compact
from couponsvc.outbox.windows import OutboxRow, Telling, Told, Turn, Window, plan_turn
from couponsvc.values.drop import DropStatus
from couponsvc.values.event import EventType

START = datetime(2026, 10, 1, 2, 0, tzinfo=UTC)
OPEN = Window(START, START + timedelta(days=1), quantity=1_000_000, status=DropStatus.ACTIVE)
FULL = limits.EVENT_VOUCHERS_MAX_COUNT


class Outbox:
    """Rows as commits and operators write them, a second apart."""

    def __init__(self) -> None:
        self.rows: list[OutboxRow] = []
        self.issued: dict[int, int] = {}

    def commit(self, *sizes: int, drop_no: int = 1) -> "Outbox":
        for size in sizes:
            first_seq = self.issued.get(drop_no, 0) + 1
            self.issued[drop_no] = first_seq + size - 1
            self._add(EventType.VOUCHER_ISSUED, drop_no, first_seq, self.issued[drop_no])
        return self

    def change(
        self,
        kind: EventType = EventType.DROP_PAUSED,
        drop_no: int = 1,
        data: dict[str, int] | None = None,
        partner_no: int | None = None,
    ) -> "Outbox":
        self._add(kind, drop_no)
        self.rows[-1] = self.rows[-1]._replace(data=compact(data or {}), partner_no=partner_no)
        return self

    def ask_for_a_test(self) -> "Outbox":
        return self._add(EventType.WEBHOOK_TEST, None)

    def _add(
        self, kind: EventType, drop_no: int | None, first_seq: int | None = None, last_seq: int | None = None
    ) -> "Outbox":
        number = len(self.rows) + 1
        subscription_no = 1 if drop_no is None else None
        moment = START + timedelta(seconds=number)
        self.rows.append(
            OutboxRow(number, kind.value, drop_no, subscription_no, None, first_seq, last_seq, "{}", moment)
        )
        return self

    def plan(self, windows: dict[int, Window] | None = None) -> Turn:
        told = {n: Told(0, opened=windows is None, ended=False) for n in (1, 2, 3)}
        needed = {row.drop_no: OPEN for row in self.rows if row.drop_no is not None and row.first_seq is None}
        return plan_turn(self.rows, told, needed | (windows or {}), START + timedelta(hours=1))


def short(tellings: Sequence[Telling]) -> list[str]:
    """`1: 1..3 @2` are vouchers of drop 1, told as of the second row; `1: drop.paused @3` a change."""
    return [
        f"{telling.drop_no}: "
        + (f"{telling.first_seq}..{telling.last_seq}" if telling.first_seq else telling.kind.value)
        + f" @{(telling.occurred_at - START).seconds}"
        for telling in tellings
    ]


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ([1], ["1: 1..1 @1"]),
        ([1] * 499, ["1: 1..499 @499"]),
        ([1] * 500, ["1: 1..500 @500"]),
        ([1] * 501, ["1: 1..500 @500", "1: 501..501 @501"]),
        ([1] * 1_200, ["1: 1..500 @500", "1: 501..1000 @1000", "1: 1001..1200 @1200"]),
        ([7] * 72, ["1: 1..500 @72", "1: 501..504 @72"]),
        ([300] * 3, ["1: 1..500 @2", "1: 501..900 @3"]),
        ([499, 1, 1], ["1: 1..500 @2", "1: 501..501 @3"]),
        ([1, 1_200], ["1: 1..500 @2", "1: 501..1000 @2", "1: 1001..1201 @2"]),
        ([1_200, 1], ["1: 1..500 @1", "1: 501..1000 @1", "1: 1001..1201 @2"]),
        ([500, 500], ["1: 1..500 @1", "1: 501..1000 @2"]),
    ],
    ids=str,
)
def test_commits_fill_events_in_order_each_as_of_the_commit_of_its_last_voucher(
    sizes: list[int], told: list[str]
) -> None:
    turn = Outbox().commit(*sizes).plan()
    assert short(turn.tellings) == told
    assert turn.told[1].told_seq == sum(sizes)
    assert turn.outbox_nos == list(range(1, len(sizes) + 1))


@pytest.mark.parametrize(
    "kind", [EventType.DROP_PAUSED, EventType.DROP_SOLD_OUT, EventType.DROP_RESTOCKED, EventType.DROP_CLOSED]
)
def test_a_change_of_the_drop_keeps_what_was_committed_before_and_after_it_apart(kind: EventType) -> None:
    turn = Outbox().commit(1, 1).change(kind).commit(1, 1).plan()
    assert short(turn.tellings) == ["1: 1..2 @2", f"1: {kind.value} @3", "1: 3..4 @5"]


def test_drops_whose_commits_alternate_are_merged_each_for_itself() -> None:
    outbox = Outbox()
    for _ in range(3):
        outbox.commit(200, drop_no=1).commit(1, drop_no=2)
    turn = outbox.change(drop_no=2).commit(1, drop_no=1).commit(1, drop_no=2).plan()
    assert short(turn.tellings) == [
        "1: 1..500 @5", "2: 1..3 @6", "1: 501..601 @8", "2: drop.paused @7", "2: 4..4 @9",
    ]  # fmt: skip


def test_what_concerns_no_drop_keeps_nothing_apart() -> None:
    turn = Outbox().commit(1).ask_for_a_test().commit(1).plan()
    assert short(turn.tellings) == ["1: 1..2 @3", "None: webhook.test @2"]
    assert turn.outbox_nos == [1, 2, 3]


def test_the_opening_is_told_before_the_first_of_merged_commits_and_the_end_after_the_last() -> None:
    window = OPEN._replace(closes_at=START + timedelta(minutes=30))
    turn = Outbox().commit(1, 1, 1).plan({1: window})
    assert short(turn.tellings) == ["1: drop.opened @0", "1: 1..3 @3", "1: drop.ended @1800"]


def test_where_a_row_does_not_follow_the_merged_ones_before_it_are_told_and_it_stays() -> None:
    outbox = Outbox().commit(1, 1, 1, 1).commit(5, drop_no=2)
    del outbox.rows[2]
    turn = outbox.plan()
    assert short(turn.tellings) == ["1: 1..2 @2", "2: 1..5 @5"]
    assert turn.outbox_nos == [1, 2, 5]
    assert turn.told[1].told_seq == 2
    assert turn.misfits.keys() == {1}


ROWS = st.lists(
    st.tuples(st.integers(1, 3), st.none() | st.sampled_from([1, 2, 60, 249, 250, 499, 500, 501, 1_300])),
    max_size=60,
)


@given(ROWS)
def test_whatever_is_committed_is_told_once_in_order_in_as_few_events_as_its_changes_allow(
    steps: list[tuple[int, int | None]],
) -> None:
    outbox = Outbox()
    for drop_no, size in steps:
        outbox.commit(size, drop_no=drop_no) if size else outbox.change(drop_no=drop_no)
    turn = outbox.plan()
    assert turn.outbox_nos == [row.outbox_no for row in outbox.rows]
    for drop_no in (1, 2, 3):
        rows = [row for row in outbox.rows if row.drop_no == drop_no]
        tellings = [telling for telling in turn.tellings if telling.drop_no == drop_no]
        assert turn.told[drop_no].told_seq == outbox.issued.get(drop_no, 0)
        assert units(tellings) == units(rows), "each voucher and each change once, in the order of commits"
        assert all(size_of(telling) <= FULL for telling in tellings)
        for before, after in pairwise(tellings):
            assert not size_of(before) or not size_of(after) or size_of(before) == FULL, "could be one event"
        for telling in tellings:
            [last] = [row for row in rows if same_end(row, telling)]
            assert telling.occurred_at == last.occurred_at


def units(found: Sequence[OutboxRow] | Sequence[Telling]) -> list[object]:
    """What is told of a drop: numbers of vouchers, and changes by their moment."""
    told: list[object] = []
    for one in found:
        if one.first_seq is None or one.last_seq is None:
            told.append(one.occurred_at)
        else:
            told += range(one.first_seq, one.last_seq + 1)
    return told


def size_of(telling: Telling) -> int:
    """Of how many vouchers it tells."""
    if telling.first_seq is None or telling.last_seq is None:
        return 0
    return telling.last_seq - telling.first_seq + 1


def same_end(row: OutboxRow, telling: Telling) -> bool:
    """Whether the row has the telling's last voucher, or is its change."""
    if telling.last_seq is None or row.first_seq is None or row.last_seq is None:
        return telling.last_seq is row.last_seq and telling.occurred_at == row.occurred_at
    return row.first_seq <= telling.last_seq <= row.last_seq


def states(turn: Turn) -> list[str]:
    """What each event of a drop says of it: `paused paused`, the second word being the state."""
    said = ((telling.kind, msgspec.json.decode(telling.data)) for telling in turn.tellings)
    return [f"{kind.value.removeprefix('drop.')} {data['state']}" for kind, data in said if "state" in data]


def test_each_event_of_a_turn_says_how_the_drop_stood_at_its_place() -> None:
    outbox = Outbox().change(EventType.DROP_PAUSED).change(EventType.DROP_RESUMED).commit(2)
    outbox.change(EventType.DROP_SOLD_OUT, data={"quantity": 2})
    outbox.change(EventType.DROP_RESTOCKED, data={"added": 3, "quantity": 5}).commit(1)
    outbox.change(EventType.DROP_DEFINED, data={"quantity": 3}).change(EventType.DROP_CLOSED)
    closed = OPEN._replace(quantity=3, status=DropStatus.CLOSED)
    assert states(outbox.plan({1: closed})) == [
        "opened open", "paused paused", "resumed open", "sold_out sold_out", "restocked open",
        "defined sold_out", "closed closed",
    ]  # fmt: skip


def test_a_window_that_opens_and_ends_on_a_paused_drop_says_so() -> None:
    paused = OPEN._replace(closes_at=START + timedelta(minutes=30), status=DropStatus.PAUSED)
    assert states(Outbox().plan({1: paused})) == ["opened paused", "ended paused"]


def test_what_was_changed_after_the_rows_were_read_is_said_by_an_event_to_come() -> None:
    outbox = Outbox().commit(2).change(EventType.DROP_SOLD_OUT, data={"quantity": 2})
    restocked_since = OPEN._replace(quantity=9)
    assert states(outbox.plan({1: restocked_since})) == ["opened open", "sold_out sold_out"]


def test_who_loses_a_drop_is_told_so_alone_and_not_how_it_goes_on() -> None:
    [telling] = Outbox().change(EventType.DROP_WITHDRAWN, partner_no=7).plan().tellings
    assert (telling.partner_no, telling.data) == (7, "{}")


def test_a_drop_whose_row_holds_no_members_is_left_alone_and_others_are_told() -> None:
    outbox = Outbox().commit(1, drop_no=2).change(drop_no=1)
    outbox.rows[1] = outbox.rows[1]._replace(data="[]")
    turn = outbox.plan()
    assert short(turn.tellings) == ["2: 1..1 @1"]
    assert turn.misfits.keys() == {1}
