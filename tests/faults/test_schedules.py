"""The small set of schedules: between them every kind of fault, overlapping, on one deployment.

`make faults SEEDS=500` runs many more. A schedule is repeated by its number.
"""

from functools import partial
from pathlib import Path

import pytest

from tests.faults.harness.fault_kinds import CLASSES, KINDS, Capabilities
from tests.faults.harness.plan import make_plan, seeds_per_deck
from tests.faults.harness.series import Series

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

SECONDS = 20.0
LATE_MAX_COUNT = 4
"""On a slow machine a fault may wait for the one before it until the run is over; then it is left out."""
SEEDS = range(seeds_per_deck(SECONDS, Capabilities()))


async def test_every_kind_of_fault_breaks_no_promise(tmp_path: Path) -> None:
    series = Series(tmp_path / "findings", per_deployment_count=len(SEEDS))
    seen: set[str] = set()
    confirmed_count = 0
    async for result in series.run(partial(make_plan, seed, SECONDS) for seed in SEEDS):
        assert result.violations == [], f"make faults SEED={result.seed} SECONDS={SECONDS}: {result.text()}"
        seen |= set(result.faults)
        confirmed_count += result.confirmed_vouchers
    assert {KINDS[name].fault_class for name in seen} >= CLASSES - {"clock"}
    not_done = set(KINDS) - seen - {name for name, kind in KINDS.items() if kind.needs == "clocks"}
    assert len(not_done) <= LATE_MAX_COUNT, f"planned, but did not happen: {not_done}"
    assert confirmed_count > 1_000 * len(SEEDS)
