"""From a run and a deployment to a verdict.

Three passes over the records, each in bounded memory: one makes the index, one judges single
records once the ledger has been read, one gathers the records that prove what was found.
"""

import contextlib
import resource
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from time import monotonic, time
from typing import Final

from loadtests import records
from loadtests.oracle import asking, rules
from loadtests.oracle.answered_twice import AnsweredTwice
from loadtests.oracle.asking import Patience
from loadtests.oracle.deployment import Deployment
from loadtests.oracle.drop_rows import drop_rows
from loadtests.oracle.evidence import Evidence
from loadtests.oracle.figures import RunFigures
from loadtests.oracle.ledger import LedgerAudit
from loadtests.oracle.preparing import prepare
from loadtests.oracle.proofs import gather
from loadtests.oracle.rulebook import RecordJudging, Tally, judge_sweeps
from loadtests.oracle.run import RunRecords
from loadtests.oracle.verdict import Finding, Promise, Verdict
from loadtests.records import Answered, NotRecords
from loadtests.scenario import Budgets

__all__ = ["Patience", "apply_rules", "judge", "rules"]

_ORDER: Final = list(Promise)
_KIB: Final = 1024


async def judge(
    run: RunRecords, deployment: Deployment, budgets: Budgets, patience: Patience | None = None
) -> Verdict:
    """Judge a run.

    Raises:
        NotRecords: the run recorded nothing that can be judged.
        Unreachable: the deployment does not answer.
        Refused: a token may not read what is needed.
    """
    began = monotonic()
    patience = patience or Patience()
    evidence = Evidence(run.facts, run.samples)
    figures = RunFigures(run.facts)
    twice = AnsweredTwice()
    for record in run.records():
        evidence.observe(record)
        figures.add(record)
        twice.add(record)
    if not figures.requests_count:
        raise NotRecords(f"{run.directory}: not one answer was recorded")
    evidence.complete = evidence.complete and not run.torn
    audit = await _ask_and_read(run, deployment, evidence, twice, patience)
    tallies = [*apply_rules(evidence, _everything(run)), *audit.tallies, twice.tally]
    return Verdict(
        scenario=run.facts.scenario,
        host=run.facts.host,
        started_ms=run.facts.started_ms,
        ended_ms=run.facts.ended_ms,
        judged_ms=time() * 1000,
        requests_count=figures.requests_count,
        numbers_count=len(evidence.book.tracks),
        persons_count=run.facts.persons,
        asked_again_count=evidence.book.records_count - figures.requests_count,
        findings=_findings(run, tallies),
        budgets=figures.budgets(budgets, evidence),
        drops=drop_rows(evidence),
        outcomes=dict(figures.outcomes.most_common()),
        series=figures.series(run.samples),
        remarks=_remarks(run, evidence),
        took_s=monotonic() - began,
        peak_memory_bytes=_peak_memory_bytes(),
    )


def apply_rules(evidence: Evidence, everything: Iterable[Answered]) -> list[Tally]:
    """Judge what is known: `evidence` with every record observed and every row of the ledger marked."""
    prepare(evidence)
    judging = RecordJudging(evidence)
    for record in everything:
        judging.judge(record)
    return [*judge_sweeps(evidence), *judging.tallies]


async def _ask_and_read(
    run: RunRecords, deployment: Deployment, evidence: Evidence, twice: AnsweredTwice, patience: Patience
) -> LedgerAudit:
    """Wait for rest, ask what is open, read the ledgers, ask a sample: in this order.

    Asking with an open number may grant it, so the ledger is read afterwards. The sample asks
    only where the answer must be the same, so it comes last and may rely on the ledger.
    """
    audit = LedgerAudit(evidence)
    path = run.directory / records.ASKED_FILE
    path.unlink(missing_ok=True)
    with records.RecordWriter(path) as written:

        def keep(record: Answered) -> None:
            written.write(record)
            evidence.observe(record)
            twice.add(record)

        await asking.wait_for_rest(deployment, evidence, patience.settle_s)
        await asking.end_the_pending(deployment, evidence, keep, patience)
        evidence.settled = await asking.wait_for_rest(deployment, evidence, patience.settle_s)
        for drop in evidence.drops.values():
            before = 0
            async with contextlib.aclosing(deployment.ledger(drop.drop_id)) as lines:
                async for line in lines:
                    seq = audit.read(drop, line)
                    audit.follows(drop, before, seq)
                    before = max(before, seq)
        await asking.wait_for_rest(deployment, evidence, settle_s=0)
        await asking.ask_again(deployment, evidence, keep, patience)
    return audit


def _everything(run: RunRecords) -> Iterator[Answered]:
    return chain(run.records(), run.asked_again())


def _findings(run: RunRecords, tallies: Sequence[Tally]) -> list[Finding]:
    numbers = {number for tally in tallies for case in tally.cases for number in case.numbers}
    proofs = gather(_everything(run), numbers, run.facts.started_ms)
    findings = [tally.finding(proofs) for tally in tallies]
    return sorted(findings, key=lambda finding: _ORDER.index(finding.promise))


def _remarks(run: RunRecords, evidence: Evidence) -> list[str]:
    remarks = [
        f"{path.name} ends in the middle of a record: its writer was killed" for path in sorted(run.torn)
    ]
    if not run.facts.complete:
        remarks.append("records of a worker are missing; what rests on absence is not judged")
    if not evidence.settled:
        remarks.append("not every drop came to rest in the time given")
    disturbed = [drop for drop in evidence.drops.values() if drop.disturbed]
    remarks += [f"{drop.drop_id}: {drop.disturbed}" for drop in disturbed[:5]]
    if len(disturbed) > 5:  # noqa: PLR2004 - as many as are listed
        remarks.append(f"{len(disturbed) - 5:,} more drops were disturbed")
    unknown = {track.drop_id for _, track in evidence.book} - set(evidence.drops)
    if unknown:
        remarks.append(f"{len(unknown):,} drops were asked for that the run did not define; not judged")
    return remarks


def _peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * _KIB
