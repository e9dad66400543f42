"""Metrics of batcher and waiter."""

from typing import Final

from couponsvc.support import metrics
from couponsvc.support.tally import Tally
from couponsvc.values.outcome import Outcome

_SIZE: Final = metrics.histogram(
    "couponsvc_batch_size_count",
    "Grabs decided in one gate call.",
    [],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
)
_DECISION: Final = metrics.histogram(
    "couponsvc_decision_seconds",
    "Time of one gate call, in seconds.",
    [],
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
)
_OUTCOMES: Final[Tally[str]] = Tally(
    metrics.counter("couponsvc_gate_outcomes", "Grabs by the gate's outcome.", ["outcome"]), label_of=str
)
_LABELS: Final = tuple((outcome.value.encode(), outcome.name.lower()) for outcome in Outcome)
QUEUED: Final = metrics.gauge("couponsvc_queued_grabs", "Grabs waiting for a decision.", [])
WAITING: Final = metrics.gauge("couponsvc_waiting_grants", "Grabs of batches that wait for a commit.", [])


def decided(size_count: int, duration_s: float) -> None:
    """Note one gate call."""
    _SIZE.observe(size_count)
    _DECISION.observe(duration_s)


def count_outcomes(codes: bytes) -> None:
    """Note the outcomes of one batch, as the gate returned them."""
    for code, label in _LABELS:
        times = codes.count(code)
        if times:
            _OUTCOMES.count(label, times)
