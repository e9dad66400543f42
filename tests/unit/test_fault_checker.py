"""The judge of fault tests: for every rule histories that break it, each with one that looks alike.

A checker that cannot find a planted violation proves nothing. tests/faults/test_planted_bugs.py goes
further and plants bugs in the service itself. Rules about stock and windows: test_fault_checker_time.py.
"""

import msgspec
import pytest

from couponsvc.values.moment import rfc3339
from tests.faults.harness.checker import RULES
from tests.faults.harness.final import Heard, Stream, Untold
from tests.faults.harness.history import LOOK_UP
from tests.faults.harness.mutant_catalogue import MUTANTS
from tests.faults.harness.mutants import Mutant, mutated
from tests.faults.harness.mutants_covered import COVERED
from tests.unit import test_fault_checker_time
from tests.unit.fault_scene import DROP, Case, Cases, Scene, broken_by

case = Cases()
PLANTED = (*MUTANTS, *(covered.mutant for covered in COVERED))


# --- never one too many ---------------------------------------------------------------------------
@case("never_too_many", "more rows than units")
def _(scene: Scene, *, legal: bool) -> None:
    scene.quantity = 3 if legal else 2
    for at, person in enumerate("abc"):
        scene.granted(person, at * 10, at * 10 + 5)


@case("never_too_many", "issued before the units were added")
def _(scene: Scene, *, legal: bool) -> None:
    scene.quantity = 3
    scene.operation("define", -20, -10, 2)
    for at, person in enumerate("abc"):
        scene.granted(person, at * 10, at * 10 + 5)
    added_ms = 18 if legal else 5_000
    scene.operation("restock", added_ms, added_ms + 5, 3)


@case("never_too_many", "more vouchers told than there were units")
def _(scene: Scene, *, legal: bool) -> None:
    for at, person in enumerate("ab" if legal else "abc"):
        scene.granted(person, at * 10, at * 10 + 5)
    del scene.rows[2:], scene.events[2:]


@case("person_limit", "two rows of one person")
def _(scene: Scene, *, legal: bool) -> None:
    scene.granted("a", 0, 5)
    scene.row("a", 10, number="m-a", partner="wallet-b" if legal else "bank-a")


@case("person_limit", "an ordinal above the limit")
def _(scene: Scene, *, legal: bool) -> None:
    scene.limit = 2 if legal else 1
    scene.row("a", 10, ordinal=2)


@case("person_limit", "told of two vouchers")
def _(scene: Scene, *, legal: bool) -> None:
    scene.granted("a", 0, 5)
    scene.limit = 2 if legal else 1
    second = scene.row("a", 12, number="m-a", ordinal=2)
    scene.call("a", 10, 15, 201, body=second.receipt, number="m-a")
    if not legal:
        del scene.rows[1:], scene.events[1:]


@case("person_limit", "refused for good without the voucher that is held")
def _(scene: Scene, *, legal: bool) -> None:
    row = scene.granted("a", 0, 5)
    scene.call("a", 10, 15, 409, "person_limit", body=row.receipt if legal else b"", number="m-a")


# --- confirmed means for ever ---------------------------------------------------------------------
@case("confirmed_stands", "a confirmed voucher is not in the ledger")
def _(scene: Scene, *, legal: bool) -> None:
    scene.call("a", 0, 5, 202) if legal else scene.granted("a", 0, 5)
    scene.lose_the_ledger()


@case("confirmed_stands", "the voucher of the number has another seq")
def _(scene: Scene, *, legal: bool) -> None:
    body, seq = scene.row("a", 2).receipt, b"1" if legal else b"2"
    body = body.replace(b"vch_7_1", b"vch_7_" + seq).replace(b'"seq":1', b'"seq":' + seq)
    scene.call("a", 0, 5, 201, body=body)


@case("confirmed_stands", "the voucher that a refusal shows is not in the ledger")
def _(scene: Scene, *, legal: bool) -> None:
    scene.call("a", 0, 5, 409, "person_limit", body=scene.row("a", 2).receipt, number="m-a")
    if not legal:
        scene.lose_the_ledger()


@case("confirmed_stands", "the body is no voucher")
def _(scene: Scene, *, legal: bool) -> None:
    scene.call("a", 0, 5, 200, body=scene.row("a", 2).receipt if legal else b'{"status":"pending"}')


@case("confirmed_for_ever", "a look-up shows other bytes")
def _(scene: Scene, *, legal: bool) -> None:
    body = scene.granted("a", 0, 5).receipt
    scene.call("a", 10, 15, 200, body=body if legal else body.replace(b'"C1"', b'"C9"'), action=LOOK_UP)


@case("told_only_what_was_committed", "the bytes are not those of the row")
def _(scene: Scene, *, legal: bool) -> None:
    row = scene.row("a", 2)
    told = rfc3339(row.issued_ms if legal else row.issued_ms + 1)
    scene.call("a", 0, 5, 201, body=row.receipt.replace(rfc3339(row.issued_ms).encode(), told.encode()))


@case("told_only_what_was_committed", "told before it was issued")
def _(scene: Scene, *, legal: bool) -> None:
    scene.call("a", 0, 5, 201, body=scene.row("a", 100 if legal else 900).receipt)


# --- one request, one answer ----------------------------------------------------------------------
@case("one_number_one_answer", "refused after its voucher was answered")
def _(scene: Scene, *, legal: bool) -> None:
    scene.operation("pause", 0, 1)
    scene.granted("a", 0, 50)
    began_ms = 10 if legal else 51
    scene.call("a", began_ms, began_ms + 5, 409, "paused")


@case("one_number_one_answer", "unknown after its voucher was answered")
def _(scene: Scene, *, legal: bool) -> None:
    scene.granted("a", 0, 50)
    began_ms = 10 if legal else 51
    scene.call("a", began_ms, began_ms + 5, 404, "unknown_request", action=LOOK_UP)


@case("one_number_one_answer", "sold out for good, and granted")
def _(scene: Scene, *, legal: bool) -> None:
    scene.operation("define", -20, -10, 1)
    if legal:
        scene.granted("a", 0, 5)
        scene.operation("restock", 20, 25, 2)
    scene.call("b", 0, 2, 0)
    scene.sold_out("b", 10, 15, retryable=False)
    scene.row("b", 30 if legal else 1)


@case("one_number_one_answer", "refused for good by the limit, and granted")
def _(scene: Scene, *, legal: bool) -> None:
    scene.limit = 2 if legal else 1
    held = scene.granted("a", 0, 5)
    scene.call("a", 10, 15, 409, "person_limit", body=held.receipt, number="m-a")
    scene.call("a", 20, 25, 0, number="m-a")
    scene.row("a", 21, number="m-a", ordinal=2)


@case("one_number_one_answer", "every grab was refused, and a voucher stands")
def _(scene: Scene, *, legal: bool) -> None:
    scene.operation("pause", 0, 1)
    status, code = (503, "gate_unavailable") if legal else (429, "rate_limited")
    scene.call("a", 0, 5, status, code)
    scene.call("a", 10, 15, 409, "paused")
    scene.row("a", 3)


@case("one_number_one_answer", "called used otherwise, and it was not")
def _(scene: Scene, *, legal: bool) -> None:
    scene.row("a", 5, number="n-x" if legal else "n-y")
    scene.call("b", 10, 15, 409, "request_mismatch", number="n-x")


@case("right_person", "somebody else's voucher")
def _(scene: Scene, *, legal: bool) -> None:
    row = scene.row("a", 5, number="n-x")
    scene.call("a" if legal else "b", 0, 10, 200, body=row.receipt, number="n-x")


@case("right_person", "another partner's voucher of the same person and number")
def _(scene: Scene, *, legal: bool) -> None:
    row = scene.row("a", 5, partner="wallet-b")
    scene.call("a", 0, 10, 200, body=row.receipt, partner="wallet-b" if legal else "bank-a")


@case("right_person", "confirmed with the voucher of the person's other number")
def _(scene: Scene, *, legal: bool) -> None:
    status, code = (409, "person_limit") if legal else (201, "")
    scene.call("a", 0, 10, status, code, body=scene.row("a", 5).receipt, number="m-a")


@case("right_person", "somebody else's voucher with the asker's name on it")
def _(scene: Scene, *, legal: bool) -> None:
    row = scene.row("a", 5, number="n-x")
    if not legal:
        scene.rows[0] = row._replace(person_token="b")
    scene.call("a", 0, 10, 200, body=row.receipt, number="n-x")


@case("right_person", "another drop's voucher")
def _(scene: Scene, *, legal: bool) -> None:
    body = scene.row("a", 5).receipt
    scene.call("a", 0, 10, 200, body=body if legal else body.replace(b'"lunch"', b'"supper"'))


# --- telling partners -----------------------------------------------------------------------------
@case("events_match", "a voucher without event")
def _(scene: Scene, *, legal: bool) -> None:
    scene.granted("a", 0, 5)
    if not legal:
        scene.events.clear()


@case("events_match", "a voucher with two events")
def _(scene: Scene, *, legal: bool) -> None:
    scene.granted("a", 0, 5)
    scene.granted("b", 10, 15)
    scene.events[0] = scene.events[0]._replace(seqs=[2])
    scene.events[1] = scene.events[1]._replace(seqs=[1 if legal else 2])


@case("events_match", "an event that counts more than it tells of")
def _(scene: Scene, *, legal: bool) -> None:
    scene.granted("a", 0, 5)
    scene.events[0] = scene.events[0]._replace(voucher_count=1 if legal else 2)


@case("events_match", "a gap in the sequence of a partner")
def _(scene: Scene, *, legal: bool) -> None:
    scene.granted("a", 0, 5)
    scene.granted("b", 10, 15)
    scene.events[1] = scene.events[1]._replace(sequence=2 if legal else 3)


@case("events_match", "left in the outbox")
def _(scene: Scene, *, legal: bool) -> None:
    scene.granted("a", 0, 5)
    scene.untold = [] if legal else [Untold(DROP, "drop.sold_out", None, None)]


@case("events_match", "an event of another partner was delivered")
def _(scene: Scene, *, legal: bool) -> None:
    scene.granted("a", 0, 5)
    scene.heard = [Heard("bank-a" if legal else "wallet-b", "evt_1", _event_of(scene, 0))] * 2


@case("events_match", "another voucher was delivered")
def _(scene: Scene, *, legal: bool) -> None:
    scene.granted("a", 0, 5)
    scene.granted("b", 10, 15)
    scene.heard = [Heard("bank-a", "evt_1", _event_of(scene, 0 if legal else 1))]


@case("events_match", "delivered again with other bytes")
def _(scene: Scene, *, legal: bool) -> None:
    scene.granted("a", 0, 5)
    body = _event_of(scene, 0)
    scene.heard = [Heard("bank-a", "evt_1", text) for text in (body, body if legal else body + b" ")]


@case("events_match", "an event that was never numbered was delivered")
def _(scene: Scene, *, legal: bool) -> None:
    scene.granted("a", 0, 5)
    scene.heard = [Heard("bank-a", "evt_1" if legal else "evt_2", _event_of(scene, 0))]


@case("feed_complete", "an event was passed over")
def _(scene: Scene, *, legal: bool) -> None:
    _followed(scene, "abc" if legal else "ac")


@case("feed_complete", "an event was read twice")
def _(scene: Scene, *, legal: bool) -> None:
    _followed(scene, "abc" if legal else "abbc")


@case("feed_complete", "a later event came before an earlier one")
def _(scene: Scene, *, legal: bool) -> None:
    _followed(scene, "abc" if legal else "acb")


@case("feed_complete", "the last event never came")
def _(scene: Scene, *, legal: bool) -> None:
    _followed(scene, "abc" if legal else "ab")


@case("feed_complete", "an event with another one's voucher")
def _(scene: Scene, *, legal: bool) -> None:
    _followed(scene, "abc", told="abc" if legal else "acb")


@case("feed_complete", "an event of another partner")
def _(scene: Scene, *, legal: bool) -> None:
    _followed(scene, "abc", partner_id="bank-a" if legal else "wallet-b")


def _followed(scene: Scene, order: str, *, told: str = "", partner_id: str = "bank-a") -> None:
    """Three vouchers; a reader gets their events in this order, with those told as their vouchers."""
    scene.quantity = 3
    for at, person in enumerate("abc"):
        scene.granted(person, at * 10, at * 10 + 5)
    data = [msgspec.json.decode(_event_of(scene, place))["data"] for place in range(3)]
    read = [
        Heard(partner_id, f"evt_{'abc'.index(person) + 1}", msgspec.json.encode(data["abc".index(voucher)]))
        for person, voucher in zip(order, told or order, strict=True)
    ]
    rightly = [Heard("bank-a", f"evt_{place + 1}", msgspec.json.encode(data[place])) for place in range(3)]
    scene.followed = [rightly, read]


def _event_of(scene: Scene, place: int) -> bytes:
    voucher = msgspec.Raw(scene.rows[place].receipt)
    return msgspec.json.encode({"data": {"drop_id": DROP, "vouchers": [voucher]}})


# --- what stands in the end -----------------------------------------------------------------------
@case("numbers_without_gaps", "a number is missing")
def _(scene: Scene, *, legal: bool) -> None:
    scene.quantity = 3
    scene.granted("a", 0, 5)
    scene.row("b", 5, seq=2 if legal else 3)


@case("numbers_without_gaps", "more is counted than there are vouchers")
def _(scene: Scene, *, legal: bool) -> None:
    scene.granted("a", 0, 5)
    scene.issued_more = 0 if legal else 1


@case("zero_drift", "couponsvc check says so")
def _(scene: Scene, *, legal: bool) -> None:
    scene.check_exit = 0 if legal else 1


@case("nothing_pending", "an entry on the stream")
def _(scene: Scene, *, legal: bool) -> None:
    scene.stream = Stream(entry_count=0 if legal else 1)


@case("nothing_pending", "a pending unit")
def _(scene: Scene, *, legal: bool) -> None:
    scene.pending = 0 if legal else 1


@case("nothing_pending", "an epoch that is not published")
def _(scene: Scene, *, legal: bool) -> None:
    scene.epoch = 1 if legal else 2


@pytest.mark.parametrize("planted", case.all, ids=str)
def test_a_planted_violation_is_found(planted: Case) -> None:
    assert planted.rule in broken_by(planted, legal=False)


@pytest.mark.parametrize("planted", case.all, ids=str)
def test_what_only_looks_like_a_violation_is_none(planted: Case) -> None:
    assert not broken_by(planted, legal=True)


def test_every_rule_has_a_planted_violation() -> None:
    assert {planted.rule for planted in (*case.all, *test_fault_checker_time.case.all)} == set(RULES)


@pytest.mark.parametrize("mutant", PLANTED, ids=[mutant.name for mutant in PLANTED])
def test_a_planted_bug_still_fits_the_source(mutant: Mutant) -> None:
    """The place it changes was rewritten? Take the same rule out of the new text."""
    assert mutated(mutant)
    assert not mutant.broken or mutant.broken in RULES


def test_a_report_shows_the_calls_that_prove_a_violation() -> None:
    scene = Scene()
    scene.granted("a", 0, 5)
    scene.lose_the_ledger()
    text = scene.judge().text()
    assert "confirmed_stands: vch_7_1 was told; under its number the ledger has nothing" in text
    assert f"grab bank-a {DROP} a n-a began 0 took 5.0 ms: 201" in text
