"""Readers of what strangers send, on altered inputs: only refusals of their own, and no second opinion."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.at_random import altered
from tests.fuzz.targets import TARGETS

pytestmark = pytest.mark.slow  # thousands of inputs each

EXAMPLES_COUNT = 10_000 if "COUPONSVC_FUZZ" in os.environ else 1_000

SLOW = {"program_file": 10}
"""Targets that take so many times as long as the others: PyYAML is slow."""


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_contradicts_the_reader(name: str) -> None:
    @settings(
        max_examples=EXAMPLES_COUNT // SLOW.get(name, 1),
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(altered(name))
    def run(data: bytes) -> None:
        TARGETS[name](data)

    run()


@settings(max_examples=EXAMPLES_COUNT, deadline=None)
@given(
    members=st.lists(
        st.tuples(
            st.sampled_from(
                ["person_token", "out_request_no", "channel", "region", "person\\u005ftoken", "x"]
            ),
            st.sampled_from(['"a"', '""', "null", "1", '"\\u0061"', '"a b"', '"\\ud800"', "[]", '"é"']),
        ),
        max_size=6,
    ),
    space=st.sampled_from(["", " ", "\n", "\t\r", "\f", "\u00a0"]),
)
def test_bodies_made_of_members_are_read_as_the_standard_library_reads_them(
    members: list[tuple[str, str]], space: str
) -> None:
    text = ",".join(f'{space}"{name}"{space}:{space}{value}{space}' for name, value in members)
    TARGETS["grab_body"](f"{space}{{{text}}}{space}".encode())
