"""What counts as disagreement of Redis and Postgres, on both sides of every comparison."""

from dataclasses import replace

import pytest

from couponsvc.reconcile.judging import Kind, judge_at_rest, judge_in_motion
from couponsvc.reconcile.looking import Look
from couponsvc.reconcile.snapshot import Counters, GateSide, LedgerSide
from couponsvc.values.drop import Drop, DropStatus, VoucherTerms

DROP = Drop(
    drop_no=1, drop_id="drop-a", program_id="qingdao-2022", template_id="dining-20", region="", shard=0,
    epoch=3, version=2, status=DropStatus.ACTIVE, quantity=10, per_person_limit=1, opens_ms=1, closes_ms=9,
    terms=VoucherTerms(2000, 6000, 1), partners=frozenset(),
)  # fmt: skip


def gate(available: int, pending: int, issued: int, *, holders: int | None = None, **other: int) -> GateSide:
    state = Counters(
        available, pending, issued, other.get("quantity", 10), other.get("limit", 1), 1, 9, 0,
        other.get("version", 2),
    )  # fmt: skip
    count = pending + issued if holders is None else holders
    return GateSide(other.get("published", 3), state, count, other.get("stranded", 0))


def kinds_at_rest(side: GateSide, issued: int, drop: Drop = DROP) -> set[Kind]:
    return {finding.kind for finding in judge_at_rest(side, LedgerSide(drop, issued))}


@pytest.mark.parametrize(
    ("side", "issued", "kinds"),
    [
        (gate(6, 0, 4), 4, set()),
        (gate(10, 0, 0), 0, set()),
        (gate(0, 0, 10), 10, set()),
        (gate(7, 0, 4), 4, {Kind.CONSERVATION}),
        (gate(5, 0, 4), 4, {Kind.CONSERVATION}),
        (gate(-1, 0, 11), 11, {Kind.CONSERVATION}),
        (gate(6, 0, 4), 5, {Kind.ISSUED}),
        (gate(6, 0, 4), 3, {Kind.ISSUED}),
        (gate(6, 0, 4, holders=3), 4, {Kind.HOLDERS}),
        (gate(6, 0, 4, holders=5), 4, {Kind.HOLDERS}),
        (gate(0, 0, 10), 9, {Kind.ISSUED, Kind.SOLD_OUT}),
        (gate(6, 0, 4, limit=2), 4, {Kind.DEFINITION}),
        (gate(7, 0, 4, quantity=11), 4, {Kind.DEFINITION}),
        (gate(7, 0, 4, quantity=11, version=1), 4, set()),  # behind: to be applied
        (gate(5, 0, 4, quantity=9, version=3), 4, {Kind.AHEAD}),
        (gate(6, 0, 4, published=2), 4, {Kind.NOT_LOADED}),
        (gate(6, 0, 4, published=-3), 4, {Kind.NOT_LOADED}),
        (gate(6, 0, 4, published=4), 4, {Kind.NOT_LOADED}),
        (GateSide(3, None, 0), 4, {Kind.NOT_LOADED}),
    ],
)
def test_at_rest_every_number_must_agree(side: GateSide, issued: int, kinds: set[Kind]) -> None:
    assert kinds_at_rest(side, issued) == kinds


@pytest.mark.parametrize(
    ("before", "issued", "after", "kinds"),
    [
        (gate(6, 2, 2), 2, gate(6, 2, 2), set()),
        (gate(6, 2, 2), 4, gate(6, 2, 2), set()),
        (gate(6, 2, 2), 5, gate(6, 2, 2), {Kind.ISSUED}),
        (gate(6, 2, 2), 1, gate(6, 2, 2), {Kind.ISSUED}),
        (gate(6, 2, 2), 6, gate(4, 1, 5), set()),
        (gate(6, 2, 2), 7, gate(4, 1, 5), {Kind.ISSUED}),
        (gate(6, 2, 2), 2, gate(4, 0, 6), set()),  # a unit may pass through between the reads
        (gate(6, 2, 2), 4, gate(6, 3, 2), {Kind.CONSERVATION}),
        (gate(6, 2, 2), 4, gate(6, 2, 2, holders=5), {Kind.HOLDERS}),
        (gate(6, 2, 2), 2, gate(6, 2, 2, stranded=2), {Kind.STUCK}),
    ],
)
def test_in_motion_numbers_must_lie_within_the_two_reads(
    before: GateSide, issued: int, after: GateSide, kinds: set[Kind]
) -> None:
    assert {f.kind for f in judge_in_motion(before, LedgerSide(DROP, issued), after)} == kinds


def test_amounts_say_how_many_vouchers_are_off() -> None:
    [finding] = judge_at_rest(gate(4, 0, 4), LedgerSide(DROP, 4))
    assert finding.amount == 2
    [finding] = judge_in_motion(gate(6, 2, 2), LedgerSide(DROP, 7), gate(6, 2, 2))
    assert finding.amount == 3


def test_a_look_during_which_the_epoch_was_raised_says_nothing() -> None:
    side = gate(7, 0, 4)
    assert Look(side, LedgerSide(DROP, 4), side, epoch_moved=True).judge() == []
    assert Look(side, LedgerSide(DROP, 4), side, epoch_moved=False).judge() != []


def test_only_an_unchanged_drop_without_pending_grants_is_at_rest() -> None:
    ledger = LedgerSide(DROP, 4)
    assert Look(gate(6, 0, 4), ledger, gate(6, 0, 4), epoch_moved=False).at_rest
    assert not Look(gate(5, 1, 4), ledger, gate(5, 1, 4), epoch_moved=False).at_rest
    assert not Look(gate(6, 0, 4), ledger, gate(5, 1, 4), epoch_moved=False).at_rest
    assert not Look(GateSide(0, None, 0), ledger, GateSide(0, None, 0), epoch_moved=False).at_rest


@pytest.mark.parametrize(
    ("published", "issued", "epoch", "never"),
    [(0, 0, 1, True), (1, 0, 1, False), (-1, 0, 1, False), (0, 1, 1, False), (0, 0, 2, False)],
)
def test_a_drop_was_never_open_only_where_no_trace_says_otherwise(
    published: int, issued: int, epoch: int, *, never: bool
) -> None:
    side = GateSide(published, None, 0)
    assert (
        Look(side, LedgerSide(replace(DROP, epoch=epoch), issued), side, epoch_moved=False).never_open
        is never
    )
