"""How rules are written, registered and counted."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tests.faults.harness.checker.evidence import Evidence
from tests.faults.harness.history import Call

EXAMPLES_MAX_COUNT: Final = 10
"""Violations of one rule that a report shows; the others are only counted."""
CALLS_MAX_COUNT: Final = 8
"""Calls that a counter-example names."""


class Broken(NamedTuple):
    """One case that is not as it must be."""

    says: str
    calls: Sequence[Call] = ()
    """Those that prove it."""


Cases = Iterator[Broken | None]
"""A rule yields None for every case that is as it must be, and what is broken for every other one."""
Rule = Callable[[Evidence], Cases]

RULES: Final[dict[str, Rule]] = {}


class Violation(NamedTuple):
    """A case that no correct service can produce."""

    rule: str
    says: str
    calls: Sequence[Call]


@dataclass
class Report:
    """What was found."""

    violations: list[Violation] = field(default_factory=list)
    """The first ones of each rule."""
    checked: dict[str, int] = field(default_factory=dict)
    """Cases by rule. A rule without cases proves nothing."""
    broken: dict[str, int] = field(default_factory=dict)
    """Of them those that are violations."""

    @property
    def broken_rules(self) -> set[str]:
        """Names of the rules that were broken."""
        return set(self.broken)

    def text(self) -> str:
        """The counter-examples for people."""
        lines = [
            f"{rule}: {count} of {self.checked[rule]} cases broken" for rule, count in self.broken.items()
        ]
        for violation in self.violations:
            lines.append(f"{violation.rule}: {violation.says}")
            lines += [f"    {_line(call)}" for call in violation.calls]
        return "\n".join(lines)


def rule(name: str) -> Callable[[Rule], Rule]:
    """Register a rule under its name."""

    def register(function: Rule) -> Rule:
        assert name not in RULES, name
        RULES[name] = function
        return function

    return register


def run_rules(evidence: Evidence, rules: Mapping[str, Rule] = RULES) -> Report:
    """Judge the evidence by every rule."""
    report = Report()
    for name, function in rules.items():
        checked = broken = 0
        for case in function(evidence):
            checked += 1
            if case is not None:
                broken += 1
                if broken <= EXAMPLES_MAX_COUNT:
                    report.violations.append(Violation(name, case.says, tuple(case.calls)[:CALLS_MAX_COUNT]))
        report.checked[name] = checked
        if broken:
            report.broken[name] = broken
    return report


def _line(call: Call) -> str:
    took_ms = (call.ended_ns - call.began_ns) / 1e6
    answer = f"{call.status} {call.code}".strip() + (
        "" if call.retryable is None else f" retryable={call.retryable}"
    )
    return (
        f"client {call.client} {call.action} {call.partner_id} {call.drop_id} {call.person_token} "
        f"{call.out_request_no} began {call.began_ns} took {took_ms:.1f} ms: {answer} {call.body.decode()}"
    )
