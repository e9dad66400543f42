"""Metrics of the lane: answers by kind and by status, and how long they took."""

from typing import Final

from couponsvc.support import metrics
from couponsvc.support.tally import Tally
from couponsvc.values.answer import AnswerKind

_TOLD: Final[Tally[AnswerKind]] = Tally(
    metrics.counter("couponsvc_grab_answers", "Grabs answered, by what they were told.", ["answer"]),
    label_of=lambda kind: kind.name,
)
_STATUS: Final[Tally[int]] = Tally(
    metrics.counter("couponsvc_grab_requests", "Grab requests answered, by HTTP status.", ["status"]),
    metrics.histogram(
        "couponsvc_grab_seconds",
        "Time from a grab's request to its answer, in seconds.",
        [],
        buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 2.5, 5.0),
    ),
    label_of=str,
)


def told(kind: AnswerKind) -> None:
    """Note what a grab was told that came as far as the desk."""
    _TOLD.count(kind)


def answered(status: int, duration_s: float) -> None:
    """Note one answered grab request, whatever it was told."""
    _STATUS.count(status)
    _STATUS.observe(duration_s)
