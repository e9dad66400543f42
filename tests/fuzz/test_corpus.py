"""What fuzzing ever found stays found out: every kept input passes its target."""

import pytest

from tests.fuzz.corpus import CORPUS, seeds_of
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_kept_inputs_pass(name: str) -> None:
    for data in seeds_of(name):
        TARGETS[name](data)


def test_every_kept_input_has_a_target() -> None:
    assert {path.stem for path in CORPUS.iterdir()} == TARGETS.keys()
