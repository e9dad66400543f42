"""Prometheus metrics that add up over all processes of a machine.

With COUPONSVC_METRICS_DIR set, every process writes its values into memory-mapped files there and
any process can answer for all. The directory is emptied by whoever starts the processes, before
they start. A counter of a dead process stays counted; what a dead process *was* at (a gauge) is
forgotten with `forget_process`.

The choice is made when prometheus_client is imported, so import it through this module only.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

METRICS_DIR: Final = os.environ.get("COUPONSVC_METRICS_DIR")
if METRICS_DIR:
    Path(METRICS_DIR).mkdir(parents=True, exist_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = METRICS_DIR

from prometheus_client import (  # noqa: E402 - the variable above must be set before this import
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead  # noqa: E402

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""What `render` writes: the Prometheus text format."""

LATENCY_BUCKETS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""From a lone grab on an idle machine to past every wait of ours."""


def counter(name: str, help_text: str, labels: Sequence[str] = ()) -> Counter:
    """Make a counter; it is shown as `<name>_total`, summed over processes."""
    return Counter(name, help_text, labels)


def gauge(name: str, help_text: str, labels: Sequence[str] = (), *, of_all: str = "livesum") -> Gauge:
    """Make a gauge.

    Args:
        name: as shown.
        help_text: one sentence.
        labels: names of its labels.
        of_all: how the values of living processes become one: `livesum` (each holds a part),
            `livemax`, `livemin`, or `livemostrecent` (each knows the whole).
    """
    if not of_all.startswith("live"):
        raise ValueError(f"a gauge of a dead process must be forgotten; {of_all} would keep it")
    return Gauge(name, help_text, labels, multiprocess_mode=of_all)  # type: ignore[arg-type]


def histogram(
    name: str, help_text: str, labels: Sequence[str] = (), buckets: Sequence[float] = LATENCY_BUCKETS_S
) -> Histogram:
    """Make a histogram, summed over processes. Names of durations end in `_seconds`."""
    return Histogram(name, help_text, labels, buckets=buckets)


def render() -> bytes:
    """Every metric of this process, or of all processes that share COUPONSVC_METRICS_DIR."""
    if not METRICS_DIR:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def forget_process(pid: int) -> None:
    """Remove the gauges of a process that is dead; what it counted stays counted."""
    if METRICS_DIR:
        mark_process_dead(pid)  # type: ignore[no-untyped-call]
