"""Bugs planted in copies of our own source: each must be found, and the correct service must pass.

Every short schedule (`acts`) is played once on the real source and must break no rule: else it would
prove nothing that a mutant breaks one. docs/planted-bugs.md lists what is caught by which rule, and
which rules of the service nothing can catch because another one stands behind them.

`make sweep` (COUPONSVC_FULL_SWEEP=1) plays all of them; CI plays the first of every schedule.
"""

import os
from collections.abc import AsyncIterator, Iterator
from typing import Final

import pytest
import pytest_asyncio

from tests.faults.harness.acts import ACTS, ENVIRONMENT
from tests.faults.harness.deployment import Deployment
from tests.faults.harness.mutant_catalogue import MUTANTS
from tests.faults.harness.mutants import Mutant
from tests.faults.harness.mutants_covered import COVERED, Covered
from tests.faults.harness.playing import Plays
from tests.servers import children, short_directory, wait_until_gone

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]


@pytest_asyncio.fixture(scope="module")
async def plays() -> AsyncIterator[Plays]:
    """One deployment for all of them; an act leaves nothing behind."""
    with short_directory() as base:
        async with Deployment(base / "deployment", api_count=1, environment=ENVIRONMENT) as deployment:
            yield Plays(deployment, base / "copies")


@pytest.fixture(autouse=True)
def _no_process_left_behind(plays: Plays) -> Iterator[None]:
    """In place of everybody's: members that were started again are no leftovers."""
    before = set(children())
    yield
    members = {plays.deployment.pid(name) for name in plays.deployment.members()}
    assert not wait_until_gone(set(children()) - before - members)


@pytest.mark.parametrize("act", ACTS)
async def test_a_correct_service_passes(act: str, plays: Plays) -> None:
    report = await plays.play_correct(act)
    assert not report.broken, report.text()


FULL: Final = "COUPONSVC_FULL_SWEEP" in os.environ
PLANTED: Final = MUTANTS if FULL else tuple({mutant.act: mutant for mutant in reversed(MUTANTS)}.values())


@pytest.mark.parametrize("mutant", PLANTED, ids=[mutant.name for mutant in PLANTED])
async def test_a_planted_bug_is_caught(mutant: Mutant, plays: Plays) -> None:
    report = await plays.play_mutant(mutant)
    assert mutant.broken in report.broken_rules, (report.checked, report.text())


@pytest.mark.skipif(not FULL, reason="proves why they cannot be caught")
@pytest.mark.parametrize("covered", COVERED, ids=[covered.mutant.name for covered in COVERED])
async def test_another_rule_stands_behind_the_missing_one(covered: Covered, plays: Plays) -> None:
    report = await plays.play_mutant(covered.mutant)
    assert not report.broken, report.text()


def test_every_act_is_what_some_planted_bug_needs() -> None:
    assert {mutant.act for mutant in MUTANTS} == set(ACTS)
