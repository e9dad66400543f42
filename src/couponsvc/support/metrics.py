"""Prometheus metrics that add up over all processes of a machine.

With COUPONSVC_METRICS_DIR set, every process writes its values into memory-mapped files there and
any process can answer for all. The directory is emptied by whoever starts the processes, before
they start. A counter of a dead process stays counted; what a dead process *was* at (a gauge) is
forgotten with `forget_process`.

The choice is made when prometheus_client is imported, so import it through this module only.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
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
    Metric,
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


def label_sets(counted: Counter) -> list[dict[str, str]]:
    """What a counter has counted under, here or in any process that shares COUPONSVC_METRICS_DIR.

    Reads the files of all of them: some milliseconds.
    """
    (described,) = counted.describe()
    found: Iterable[Metric] = _Collector().collect() if METRICS_DIR else counted.collect()
    sets = {
        tuple(sorted(sample.labels.items()))
        for metric in found
        if metric.name == described.name
        for sample in metric.samples
    }
    return [dict(labels) for labels in sorted(sets)]


def forget_labels(counted: Counter, labels: Mapping[str, str]) -> None:
    """Show a counter's label set no more, whichever process counted under it; for ever, where they share.

    Args:
        counted: the counter.
        labels: each of its labels.
    """
    if METRICS_DIR:
        counted.labels(**labels).inc(math.nan)  # files keep what they have; a sum with this is none
    else:
        counted.remove_by_labels(dict(labels))


class _Collector(MultiProcessCollector):
    """All processes' metrics but what was forgotten."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        super().__init__(registry)  # type: ignore[no-untyped-call]

    def collect(self) -> list[Metric]:
        """The metrics; part of the library's protocol."""
        found: list[Metric] = list(super().collect())  # type: ignore[no-untyped-call]
        for metric in found:
            if metric.type == "counter":
                metric.samples = [sample for sample in metric.samples if not math.isnan(sample.value)]
        return found


def render() -> bytes:
    """Every metric of this process, or of all processes that share COUPONSVC_METRICS_DIR."""
    if not METRICS_DIR:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    _Collector(registry)
    return generate_latest(registry)


def forget_process(pid: int) -> None:
    """Remove the gauges of a process that is dead; what it counted stays counted."""
    if METRICS_DIR:
        mark_process_dead(pid)  # type: ignore[no-untyped-call]
