"""Rules about vouchers and numbers: what was confirmed stands, and a number has one answer."""

from collections import defaultdict
from collections.abc import Iterator

from loadtests.oracle.evidence import DropEvidence, Evidence
from loadtests.oracle.rulebook import (
    MISSING,
    Case,
    Excused,
    disturbed,
    incomplete,
    issued_before,
    record_rule,
    shared,
    sweep_rule,
)
from loadtests.oracle.tracks import FINAL_CODES, NEVER_MS, Seen, Track, exact_digest, read_voucher, row_digest
from loadtests.oracle.verdict import Promise
from loadtests.records import GRAB, Answered


# --- confirmed means for ever -------------------------------------------------------------------
@record_rule(Promise.STANDS, "Every voucher answered stands in the ledger, byte for byte", 200, 201)
def voucher_stands(_evidence: Evidence, _drop: DropEvidence, track: Track, record: Answered) -> str | None:
    """A 200 or 201 is sent after the commit, and the ledger was read after every answer.

    Vouchers are never taken out of the ledger, and a line is the receipt itself but for `status`.
    """
    if not track.seen & Seen.IN_LEDGER:
        return f"{record.status} with a voucher, and no row of the ledger names this number and person"
    if row_digest(record.voucher) != track.row_digest:
        return f"the voucher of the {record.status} is not the one in the ledger"
    return None


@record_rule(Promise.STANDS, "A voucher names the drop, the person and the number it was asked for", 200, 201)
def voucher_is_ones_own(
    _evidence: Evidence, _drop: DropEvidence, _track: Track, record: Answered
) -> str | None:
    """A number has one person and one drop, so its voucher can name nobody else's."""
    voucher = read_voucher(record.voucher)
    if voucher is None:
        return f"the body of the {record.status} is no voucher"
    if voucher.person_token != record.person_token:
        return f"{voucher.voucher_id} belongs to another person"
    if (voucher.drop_id, voucher.out_request_no) != (record.drop_id, record.out_request_no):
        return f"{voucher.voucher_id} belongs to {voucher.out_request_no} of {voucher.drop_id}"
    return None


@record_rule(
    Promise.IN_ORDER, "Whoever is refused for the person limit really holds that voucher", "person_limit"
)
def limit_shows_what_is_held(
    evidence: Evidence, drop: DropEvidence, _track: Track, record: Answered
) -> str | Case | None:
    """The final refusal shows a committed voucher of this person and drop; the ledger came later."""
    if record.retryable is not False:
        return None
    held = read_voucher(record.voucher)
    if held is None:
        return "refused for good, and no voucher is shown"
    if (held.person_token, held.drop_id) != (record.person_token, record.drop_id):
        return f"the voucher shown ({held.voucher_id}) is another person's or drop's"
    if held.out_request_no == record.out_request_no:
        return "the voucher shown was granted to this very number"
    wrong = evidence.not_standing(drop, held, record.voucher)
    return Case(wrong, (record.out_request_no, held.out_request_no), drop.drop_id) if wrong else None


@sweep_rule(Promise.STANDS, "Every grab answered 202 ended, when asked again, with a voucher or a refusal")
def pending_ended(evidence: Evidence) -> Iterator[Case | None]:
    """202 says that it is decided; the oracle asked again, for as long as its patience lasts."""
    for number, track in evidence.book:
        if track.seen & Seen.PENDING:
            open_still = track.seen & Seen.OPEN
            yield (
                Case("still without an end long after the run", (number,), track.drop_id)
                if open_still
                else None
            )


@sweep_rule(Promise.STANDS, "A grab answered 202 was not forgotten: its number was issued")
def pending_was_issued(evidence: Evidence) -> Iterator[Case | None]:
    """A granted number is committed, unless the ledger has it for another drop or person.

    Only trouble loses a grant (then it is decided anew, and may be refused): such drops are left
    out. The oracle asked until each 202 had a voucher or a refusal, so what has no voucher here
    was refused after its 202; what has no end at all is another rule's concern.
    """
    for number, track in evidence.book:
        drop = evidence.drops.get(track.drop_id)
        if not track.seen & Seen.PENDING or track.seen & Seen.OPEN or drop is None or drop.disturbed:
            continue
        if evidence.book.tracks[number].other is None:
            forgotten = not track.seen & (Seen.VOUCHER | Seen.IN_LEDGER)
            says = "pending, then refused, and nothing was issued"
            yield Case(says, (number,), track.drop_id) if forgotten else None


@sweep_rule(Promise.STANDS, "What was counted as issued is never fewer later")
def issued_never_falls(evidence: Evidence) -> Iterator[Case | None]:
    """One observer asked one question after the other; issued vouchers are never deleted."""
    highest: dict[str, int] = {}
    for sample in evidence.samples:
        before = highest.get(sample.drop_id, 0)
        highest[sample.drop_id] = max(before, sample.issued)
        fell = sample.issued < before
        yield Case(f"issued fell from {before:,} to {sample.issued:,}", (), sample.drop_id) if fell else None


# --- one request, one answer --------------------------------------------------------------------
@record_rule(Promise.ONE_ANSWER, "A repeated request gets the same bytes", 200, 201)
def same_bytes(_evidence: Evidence, _drop: DropEvidence, track: Track, record: Answered) -> str | None:
    """A receipt never changes (contract), so two of one number are equal whenever they were sent."""
    same = exact_digest(record.voucher) == track.voucher_digest
    return None if same else "two different vouchers for one number"


@record_rule(
    Promise.ONE_ANSWER,
    "Nobody is refused after the same number was answered with a voucher",
    *("sold_out", "person_limit", "request_mismatch", "not_started", "ended", "paused"),
    *("unknown_request", "unknown_drop"),
)
def not_refused_after_voucher(
    evidence: Evidence, _drop: DropEvidence, track: Track, record: Answered
) -> str | None:
    """A standing voucher answers its number before every other rule, paused and ended included.

    The request was sent after the voucher had arrived, by the same clock (or by the oracle, long
    after): the commit was over when it was decided.
    """
    if track.seen & Seen.MANY_WORKERS or track.voucher_ms == NEVER_MS:
        return None
    before = evidence.clocks.certainly_before(track.voucher_ms, track.worker, record.sent_ms, record.worker)
    return f"{record.code} after a voucher had been answered" if before else None


@record_rule(
    Promise.ONE_ANSWER,
    "A number that is refused for good is never granted",
    *FINAL_CODES,
    excuses=(disturbed,),
)
def final_is_final(_evidence: Evidence, drop: DropEvidence, track: Track, record: Answered) -> str | None:
    """Decisions of a drop are made one after the other, so the two exclude each other.

    After the grant the number is answered with its voucher; before it nothing can pass that
    refuses for good.
    """
    if record.retryable is not False or not track.seen & Seen.VOUCHER:
        return None
    if (record.code == "sold_out" and drop.restocked) or (record.code == "ended" and drop.redefined):
        return None
    return f"{record.code} for good, and a voucher for the same number"


@sweep_rule(Promise.ONE_ANSWER, "A number whose every answer was a refusal left nothing behind")
def refusals_leave_nothing(evidence: Evidence) -> Iterator[Case | None]:
    """Every request of the number was answered, and by refusals only, so none of them was granted.

    A request without answer, a 202 or a server error may hide a grant: such numbers are left out.
    What the oracle was told later does not count, since it was asked because of the row.
    """
    if not evidence.complete:
        raise Excused(MISSING)
    for number, track in evidence.book:
        seen = track.seen
        told = track.voucher_ms < NEVER_MS or seen & (Seen.UNCERTAIN | Seen.MANY_WORKERS)
        if seen & Seen.REFUSED and not told:
            issued = seen & Seen.IN_LEDGER
            yield Case("refused, and issued nevertheless", (number,), track.drop_id) if issued else None


@sweep_rule(Promise.ONE_ANSWER, "Nobody was answered with more vouchers of a drop than one may hold")
def limit_of_answers(evidence: Evidence) -> Iterator[Case | None]:
    """Vouchers are never taken back during a run, so those answered to one person add up."""
    numbers: dict[tuple[str, str], list[str]] = defaultdict(list)
    for number, track in evidence.book:
        if track.seen & Seen.VOUCHER:
            numbers[track.drop_id, track.person_token].append(number)
    for (drop_id, _), held in numbers.items():
        drop = evidence.drops.get(drop_id)
        if drop is not None:
            limit = drop.definition.per_person_limit
            says = f"one person was answered with {len(held)} vouchers, {limit} allowed"
            yield Case(says, tuple(held[:4]), drop_id) if len(held) > limit else None


# --- no wrong refusal, as far as time plays no part ----------------------------------------------
@record_rule(
    Promise.IN_ORDER,
    "A number is called used otherwise only if it was",
    "request_mismatch",
    excuses=(incomplete, shared),
)
def mismatch_has_a_reason(
    evidence: Evidence, _drop: DropEvidence, _track: Track, record: Answered
) -> str | None:
    """Numbers are the run's own and every use is recorded, so the other use must be among them."""
    first = evidence.book.tracks[record.out_request_no]
    return None if first.other is not None else "called used otherwise, and nobody else used it"


@record_rule(
    Promise.IN_ORDER,
    "Whoever is told that a voucher is being issued has asked under another number",
    "person_limit",
    excuses=(incomplete, shared, issued_before),
)
def limit_has_a_reason(evidence: Evidence, drop: DropEvidence, track: Track, record: Answered) -> str | None:
    """Only a grant of another number of the same person stands in the way, and each was asked for."""
    if record.retryable is False:
        return None
    others = evidence.numbers_of_person(drop.drop_id, track.person_token) - 1
    limit = drop.definition.per_person_limit
    return None if others >= limit else f"at the limit of {limit} with {others} other numbers"


@record_rule(Promise.IN_ORDER, "A drop that exists is known", "unknown_drop", excuses=(disturbed,))
def drop_is_known(_evidence: Evidence, _drop: DropEvidence, _track: Track, record: Answered) -> str | None:
    """Every drop of the run was defined, and answered with its figures, before the first grab."""
    return "404 unknown_drop for a drop that was defined before the run" if record.action == GRAB else None
