"""The ledger's verdicts as a table, and against a model that knows nothing of their order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from couponsvc.ledger.verdicts import Asked, Figures, Ruling, Standings, classify
from couponsvc.values.outcome import Verdict
from couponsvc.values.voucher import StandingVoucher

FIGURES = Figures(epoch=1, issued=5, quantity=10, per_person_limit=2)


def standing(
    *,
    drop_no: int = 7,
    person: str = "p1",
    number: str = "n1",
    ordinal: int = 1,
    seq: int = 3,
    partner_no: int = 1,
) -> StandingVoucher:
    return StandingVoucher(drop_no, seq, partner_no, ordinal, 1_000, person, number, "CODE", "", "")


def asked(
    person: str = "p1", number: str = "n1", ordinal: int = 1, epoch: int = 1, drop_no: int = 7
) -> Asked:
    return Asked(drop_no, epoch, 1, person, ordinal, number)


FULL = FIGURES._replace(issued=10)
OTHER_NUMBER = standing(number="other")
SECOND = standing(number="second", ordinal=2, seq=4)
TABLE = [
    ("nothing stands", asked(), FIGURES, [], Ruling(Verdict.COMMITTED, None)),
    ("the very grab stands", asked(), FIGURES, [standing()], Ruling(Verdict.COMMITTED, standing())),
    (
        "a replay comes before a closed epoch",
        asked(epoch=9),
        FIGURES,
        [standing()],
        Ruling(Verdict.COMMITTED, standing()),
    ),
    (
        "a replay comes before an exhausted quantity",
        asked(),
        FULL,
        [standing()],
        Ruling(Verdict.COMMITTED, standing()),
    ),
    ("a replay needs no drop", asked(), None, [standing()], Ruling(Verdict.COMMITTED, standing())),
    (
        "the number is another person's",
        asked(),
        FIGURES,
        [standing(person="p2")],
        Ruling(Verdict.MISMATCH, None),
    ),
    ("the number is another drop's", asked(), FIGURES, [standing(drop_no=8)], Ruling(Verdict.MISMATCH, None)),
    (
        "a mismatch comes before the limit",
        asked(),
        FIGURES._replace(per_person_limit=1),
        [standing(person="p2"), OTHER_NUMBER],
        Ruling(Verdict.MISMATCH, None),
    ),
    (
        "the person is at the limit: the voucher of that ordinal is told",
        asked(ordinal=2),
        FIGURES,
        [OTHER_NUMBER, SECOND],
        Ruling(Verdict.HELD, SECOND),
    ),
    (
        "at the limit with a free ordinal: the first voucher is told",
        asked(ordinal=3),
        FIGURES,
        [SECOND, OTHER_NUMBER],
        Ruling(Verdict.HELD, OTHER_NUMBER),
    ),
    (
        "held comes before a closed epoch",
        asked(epoch=9),
        FIGURES._replace(per_person_limit=1),
        [OTHER_NUMBER],
        Ruling(Verdict.HELD, OTHER_NUMBER),
    ),
    ("the ordinal is taken below the limit", asked(), FIGURES, [OTHER_NUMBER], Ruling(Verdict.STALE, None)),
    ("a second one", asked(ordinal=2), FIGURES, [OTHER_NUMBER], Ruling(Verdict.COMMITTED, None)),
    ("the epoch is older", asked(epoch=1), FIGURES._replace(epoch=2), [], Ruling(Verdict.STALE, None)),
    ("the epoch is newer than the row", asked(epoch=2), FIGURES, [], Ruling(Verdict.STALE, None)),
    ("stale comes before exceeded", asked(epoch=2), FULL, [], Ruling(Verdict.STALE, None)),
    ("the drop is gone", asked(), None, [], Ruling(Verdict.STALE, None)),
    ("one unit is left", asked(), FULL._replace(issued=9), [], Ruling(Verdict.COMMITTED, None)),
    ("no unit is left", asked(), FULL, [], Ruling(Verdict.EXCEEDED, None)),
    (
        "another partner's number and person are other ones",
        asked(),
        FIGURES._replace(per_person_limit=1),
        [standing(partner_no=2)],
        Ruling(Verdict.COMMITTED, None),
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("grant", "figures", "vouchers", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_each_row(
    grant: Asked, figures: Figures | None, vouchers: list[StandingVoucher], expected: Ruling
) -> None:
    assert classify(grant, figures, Standings(vouchers)) == expected


def test_noting_a_voucher_twice_changes_nothing() -> None:
    once, twice = Standings([standing()]), Standings([standing(), standing()])
    assert once.of_person(asked()) == twice.of_person(asked()) == {1: standing()}


persons = st.sampled_from(["p1", "p2", "p3"])
numbers = st.sampled_from(["n1", "n2", "n3", "n4"])
grants = st.builds(asked, persons, numbers, st.integers(1, 2), st.integers(1, 2), st.integers(7, 8))


@given(st.lists(grants, max_size=30), st.integers(1, 4), st.integers(1, 2))
def test_whatever_is_asked_the_promises_hold(asked_for: list[Asked], quantity: int, limit: int) -> None:
    """Settle grants one after the other, as the ledger does, and look at what stands at the end."""
    standings = Standings()
    vouchers: list[StandingVoucher] = []
    for grant in asked_for:
        issued = sum(v.drop_no == grant.drop_no for v in vouchers)
        verdict, found = classify(grant, Figures(1, issued, quantity, limit), standings)
        mine = [v for v in vouchers if v.out_request_no == grant.out_request_no]
        held = [v for v in vouchers if (v.drop_no, v.person_token) == (grant.drop_no, grant.person_token)]
        same = [v for v in mine if v in held]
        match verdict:
            case Verdict.COMMITTED if found:
                assert same == [found]
            case Verdict.COMMITTED:
                assert not mine
                assert issued < quantity
                assert grant.epoch == 1
                new = StandingVoucher(
                    grant.drop_no, issued + 1, 1, grant.ordinal, 0,
                    grant.person_token, grant.out_request_no, "", "", "",
                )  # fmt: skip
                vouchers.append(new)
                standings.add(new)
            case Verdict.MISMATCH:
                assert mine
                assert not same
            case Verdict.HELD:
                assert found in held
                assert len(held) >= limit
            case Verdict.EXCEEDED:
                assert issued == quantity
            case Verdict.STALE:
                assert grant.epoch != 1 or grant.ordinal in [v.ordinal for v in held]
    assert len({v.out_request_no for v in vouchers}) == len(vouchers)
    places = [(v.drop_no, v.person_token, v.ordinal) for v in vouchers]
    assert len(set(places)) == len(places)
    for drop_no in (7, 8):
        assert [v.seq for v in vouchers if v.drop_no == drop_no] == list(
            range(1, sum(v.drop_no == drop_no for v in vouchers) + 1)
        )
        assert sum(v.drop_no == drop_no for v in vouchers) <= quantity
