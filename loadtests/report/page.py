"""The report: one page without scripts and without anything loaded from elsewhere, verdict first."""

from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Final

from loadtests.oracle.verdict import Budget, CounterExample, Finding, Promise, Standing, Verdict
from loadtests.records import RunFacts
from loadtests.report.plots import plots
from loadtests.report.tables import Wrong, pairs, section, table

_STYLE: Final = Path(__file__).with_name("style.css")
_BADGES: Final = {Standing.KEPT: "kept", Standing.BROKEN: "broken", Standing.NOT_JUDGED: "open"}
DROPS_MAX_COUNT: Final = 40
"""Rows of the drops' table; those with the most units."""
EXAMPLES_MAX_COUNT: Final = 3
"""Counter-examples shown per rule; `verdict.json` has more."""
MEANINGS: Final = {
    Promise.TOO_MANY: "No voucher beyond the quantity, no person beyond the limit, no number or code twice.",
    Promise.TOO_FEW: "No unit is left behind or lost while persons are sent away.",
    Promise.STANDS: "Every voucher answered is in the ledger, byte for byte, and everything pending ended.",
    Promise.ONE_ANSWER: "A request number has one answer, however often it is repeated.",
    Promise.IN_ORDER: "Refusals were true at the moment they were given, window and stock in order of time.",
    Promise.BUDGETS: "Latency, errors, silence and overload stay within what the scenario allows.",
}


def render(verdict: Verdict, facts: RunFacts) -> str:
    """The whole page as HTML."""
    title = f"{verdict.scenario}: {'kept' if verdict.kept else 'broken'}"
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE.read_text('utf-8')}</style></head><body>",
            _hero(verdict, facts),
            _promises(verdict),
            "<h2>Over time</h2>",
            *plots(verdict, facts),
            _budgets(verdict),
            _drops(verdict),
            _outcomes(verdict),
            _facts(verdict, facts),
            _rules(verdict),
            "</body></html>\n",
        )
    )


def _hero(verdict: Verdict, facts: RunFacts) -> str:
    broken = [promise for promise in Promise if verdict.standing(promise) is Standing.BROKEN]
    kind, says = "kept", "Every promise was kept"
    if broken:
        kind, says = "broken", f"Broken: {', '.join(broken)}"
    issued = sum(row.issued for row in verdict.drops)
    quantity = sum(row.quantity for row in verdict.drops)
    length_s = (facts.ended_ms - facts.started_ms) / 1000
    return (
        f'<header class="hero {kind}"><p class="over">Load test · {escape(verdict.scenario)}</p>'
        f"<h1>{escape(says)}</h1>"
        f"<p>{issued:,} of {quantity:,} units issued to {verdict.persons_count:,} persons who asked "
        f"{verdict.requests_count:,} times in {length_s:,.1f} s.</p>"
        f'<p class="soft">{escape(verdict.host)} · {_moment(verdict.started_ms)}</p></header>'
    )


def _promises(verdict: Verdict) -> str:
    return f'<ul class="promises">{"".join(_promise(verdict, promise) for promise in Promise)}</ul>'


def _promise(verdict: Verdict, promise: Promise) -> str:
    findings = verdict.of(promise)
    standing = verdict.standing(promise)
    count = sum(finding.checked_count for finding in findings)
    checked = f" {count:,} cases." if findings else ""
    excused = sorted({reason for finding in findings for reason in finding.excused})
    left_out = f'<p class="soft">Left out in part: {escape("; ".join(excused))}.</p>' if excused else ""
    broken = "".join(_broken(finding) for finding in findings if finding.broken_count)
    broken += "".join(_over(budget) for budget in verdict.budgets if _breaks(promise, budget))
    return (
        f'<li><div class="head"><span class="badge {_BADGES[standing]}">{standing}</span>'
        f'<b>{promise.capitalize()}</b><span class="soft">{MEANINGS[promise]}{checked}</span></div>'
        f"{left_out}{broken}</li>"
    )


def _breaks(promise: Promise, budget: Budget) -> bool:
    return promise is Promise.BUDGETS and budget.standing is Standing.BROKEN


def _broken(finding: Finding) -> str:
    shown = min(EXAMPLES_MAX_COUNT, len(finding.examples))
    examples = "".join(f"<li>{_example(example)}</li>" for example in finding.examples[:shown])
    first = f", the first {shown} here" if finding.broken_count > shown else ""
    return (
        f'<div class="case"><h3>Not so: {escape(finding.rule)}</h3>'
        f"<p>{finding.broken_count:,} of {finding.checked_count:,} cases{first}.</p><ul>{examples}</ul></div>"
    )


def _example(example: CounterExample) -> str:
    heads = ("=sent s", "=answered s", "clock", "asked", "number", "person", "status", "answer")
    rows = [
        (
            f"{proof.sent_ms / 1000:,.3f}",
            f"{proof.answered_ms / 1000:,.3f}",
            proof.worker,
            proof.action,
            proof.out_request_no,
            proof.person,
            str(proof.status or "none"),
            proof.code or proof.voucher,
        )
        for proof in example.proofs
    ]
    says = f"<code>{escape(example.drop_id)}</code> {escape(example.says)}"
    return says + table(heads, rows, kind="proofs")


def _over(budget: Budget) -> str:
    measured, limit = _value(budget.measured, budget.unit), _value(budget.limit or 0.0, budget.unit)
    return (
        f'<div class="case"><h3>Over: {escape(budget.name)}</h3>'
        f"<p>{measured} of {limit} allowed, over {budget.count:,} {escape(budget.over)}.</p></div>"
    )


def _budgets(verdict: Verdict) -> str:
    rows = []
    for budget in verdict.budgets:
        measured = _value(budget.measured, budget.unit)
        limit = "none" if budget.limit is None else _value(budget.limit, budget.unit)
        if budget.standing is Standing.BROKEN:
            measured = Wrong(measured)
        rows.append((budget.name, measured, limit, f"{budget.count:,}", budget.over))
    return section("Figures and budgets", ("figure", "=measured", "=allowed", "=over", "of what"), rows)


def _drops(verdict: Verdict) -> str:
    chosen = sorted(verdict.drops, key=lambda row: -row.quantity)[:DROPS_MAX_COUNT]
    rows = [
        (
            row.drop_id,
            row.state,
            *(f"{count:,}" for count in (row.quantity, row.issued, row.pending, row.available)),
            f"{row.ledger_count:,}",
            f"{row.persons_refused:,}",
            _after(row.first_grant_ms),
            _after(row.sold_out_ms),
        )
        for row in chosen
    ]
    heads = ("drop", "state", "=quantity", "=issued", "=pending", "=available", "=ledger rows", "=sent away")
    more = len(verdict.drops) - len(chosen)
    note = f'<p class="soft">and {more:,} smaller drops</p>' if more > 0 else ""
    return section("Drops at rest", (*heads, "=first voucher", "=sold out"), rows) + note


def _outcomes(verdict: Verdict) -> str:
    total = max(1, verdict.requests_count)
    rows = [(name, f"{count:,}", f"{count / total:.2%}") for name, count in verdict.outcomes.items()]
    return section("Answers", ("answer", "=count", "=share"), rows)


def _facts(verdict: Verdict, facts: RunFacts) -> str:
    tolerances_ms = [clock.tolerance_ms for clock in facts.clocks.values()]
    clock = "not measured"
    if tolerances_ms:
        clock = f"within {max(tolerances_ms):,.1f} ms of the deployment's"
    judged = (
        f"{_moment(verdict.judged_ms)}, in {verdict.took_s:,.1f} s "
        f"with {verdict.peak_memory_bytes / 2**20:,.0f} MiB; "
        f"{verdict.numbers_count:,} numbers, {verdict.asked_again_count:,} asked again"
    )
    listed = [
        ("began", _moment(facts.started_ms)),
        ("ended", _moment(facts.ended_ms)),
        ("operations", ", ".join(f"{op.what} {op.drop_id}" for op in facts.operations) or "none"),
        ("clock", clock),
        *facts.options.items(),
        *facts.versions.items(),
        ("judged", judged),
        *(("note", remark) for remark in verdict.remarks),
    ]
    return f"<h2>The run</h2>{pairs(listed)}"


def _rules(verdict: Verdict) -> str:
    rows = []
    for finding in verdict.findings:
        broken = f"{finding.broken_count:,}"
        if finding.broken_count:
            broken = Wrong(broken)
        excused = "; ".join(f"{reason} ({count:,})" for reason, count in finding.excused.items())
        rows.append((finding.rule, f"{finding.checked_count:,}", broken, excused))
    return section("Every rule", ("rule", "=cases", "=broken", "left out, and why"), rows)


def _value(value: float, unit: str) -> str:
    return f"{value:,.1f} ms" if unit == "ms" else f"{value:.2%}"


def _after(at_ms: float | None) -> str:
    return "" if at_ms is None else f"{at_ms / 1000:,.2f} s"


def _moment(at_ms: float) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
