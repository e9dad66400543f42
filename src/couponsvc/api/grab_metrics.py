"""Metrics of the lane: answers by kind and by status, and how long they took."""

from typing import Final

from couponsvc.support import metrics
from couponsvc.support.tally import Tally

TALLY: Final = Tally(
    metrics.counter("couponsvc_grab_answers", "Grabs answered, by what they were told.", ["answer"])
)
_STATUS: Final = Tally(
    metrics.counter("couponsvc_grab_requests", "Grab requests answered, by HTTP status.", ["status"]),
    metrics.histogram(
        "couponsvc_grab_seconds",
        "Time from a grab's request to its answer, in seconds.",
        [],
        buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 2.5, 5.0),
    ),
)


def answered(status: int, duration_s: float) -> None:
    """Note one answered grab request, whatever it was told."""
    _STATUS.count(str(status))
    _STATUS.observe(duration_s)
