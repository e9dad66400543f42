"""Judges what callers saw (`harness.history`) against what stands in the end (`harness.final`).

A rule is sound: no correct service can break it, whatever was killed, paused or cut off meanwhile.
What a call without an answer did is unknown, so it may have been either, and never both.
"""

from tests.faults.harness.checker import answers, counts, stock, telling, windows
from tests.faults.harness.checker.evidence import Evidence
from tests.faults.harness.checker.rulebook import RULES, Report, Violation, run_rules
from tests.faults.harness.final import FinalState
from tests.faults.harness.history import History

__all__ = ["RULES", "Report", "Violation", "answers", "counts", "judge", "stock", "telling", "windows"]


def judge(history: History, final: FinalState) -> Report:
    """Apply every rule. Only drops that `final` knows are judged."""
    return run_rules(Evidence(history, final))
