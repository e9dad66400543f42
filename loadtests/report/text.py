"""The verdict as a few lines for a terminal."""

from collections.abc import Iterator

from loadtests.oracle.verdict import Budget, CounterExample, Finding, Promise, Standing, Verdict

_SHOWN_PROOFS_COUNT = 4
"""Enough to see the contradiction; the report has all."""


def summary(verdict: Verdict) -> str:
    """Promise by promise: kept with what was counted, broken with the first counter-examples."""
    return "\n".join(_lines(verdict))


def _lines(verdict: Verdict) -> Iterator[str]:
    word = "KEPT" if verdict.kept else "BROKEN"
    yield f"{verdict.scenario} on {verdict.host}: {word}"
    for promise in Promise:
        yield from _promise(verdict, promise)
    yield (
        f"  judged {verdict.requests_count:,} answers to {verdict.numbers_count:,} numbers in "
        f"{verdict.took_s:.1f} s, {verdict.asked_again_count:,} asked again, "
        f"{verdict.peak_memory_bytes / 2**20:,.0f} MiB"
    )
    yield from (f"  note: {remark}" for remark in verdict.remarks)


def _promise(verdict: Verdict, promise: Promise) -> Iterator[str]:
    findings = verdict.of(promise)
    judged = [finding for finding in findings if finding.standing is not Standing.NOT_JUDGED]
    count = sum(finding.checked_count for finding in findings)
    says = f"{len(judged)} rules, {count:,} cases"
    if promise is Promise.BUDGETS:
        says = "; ".join(budget_words(budget) for budget in verdict.budgets if budget.limit is not None)
    yield f"  {promise:<24} {verdict.standing(promise):<11} {says}"
    for finding in findings:
        if finding.standing is Standing.BROKEN:
            yield from _broken(finding)


def _broken(finding: Finding) -> Iterator[str]:
    yield f"    {finding.broken_count:,} of {finding.checked_count:,}: NOT {finding.rule}"
    for example in finding.examples:
        yield from _example(example)


def _example(example: CounterExample) -> Iterator[str]:
    numbers = ", ".join(example.numbers)
    yield f"      {example.drop_id} {numbers}: {example.says}"
    for proof in example.proofs[:_SHOWN_PROOFS_COUNT]:
        yield (
            f"        {proof.sent_ms / 1000:9.3f} s {proof.action} {proof.out_request_no} -> "
            f"{proof.status} {proof.code or proof.voucher} after {proof.answered_ms - proof.sent_ms:,.0f} ms"
        )


def budget_words(budget: Budget) -> str:
    """One budget, as measured and as allowed."""
    if budget.unit == "ms":
        measured, limit = f"{budget.measured:,.1f} ms", f"{budget.limit or 0:,.0f}"
    else:
        measured, limit = f"{budget.measured:.2%}", f"{budget.limit or 0:.2%}"
    over = "" if budget.standing is not Standing.BROKEN else " OVER"
    return f"{budget.name} {measured} of {limit}{over}"
