"""A kill point obeys an order once, and nothing that is not an order."""

from pathlib import Path

import pytest

from couponsvc.support.kill_points import HIT_SUFFIX, RAISE, KillPointReached, _reach

POINT = "a.point"


def test_an_order_is_obeyed_once_and_leaves_its_proof(tmp_path: Path) -> None:
    order = tmp_path / POINT
    order.write_text(RAISE)
    with pytest.raises(KillPointReached):
        _reach(order)
    assert [path.name for path in tmp_path.iterdir()] == [POINT + HIT_SUFFIX]
    _reach(order)


@pytest.mark.parametrize("text", ["", "kil", "stop"])
def test_a_file_that_is_still_being_written_stops_nobody(tmp_path: Path, text: str) -> None:
    # An empty one once stopped a process that nobody continued: a round of the sweep hung.
    order = tmp_path / POINT
    order.write_text(text)
    _reach(order)
    assert [path.name for path in tmp_path.iterdir()] == [POINT]
