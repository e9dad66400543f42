"""What feeding brokers counts and measures; `sink` is the broker's kind."""

from typing import Final

from couponsvc.support import metrics

events: Final = metrics.counter(
    "couponsvc_sink_events", "Events that a broker said it has.", ("sink", "answer")
)
"""`answer`: `stored`, or `known` where the broker had the event already."""
failures: Final = metrics.counter(
    "couponsvc_sink_failures", "Turns of feeding a broker that failed.", ("sink", "reason")
)
"""`reason`: `away`, `refused`, `ledger` (Postgres), `unexpected`."""
missed: Final = metrics.counter(
    "couponsvc_sink_missed_events", "Events that were dropped as old before a broker had them.", ("sink",)
)
behind: Final = metrics.gauge(
    "couponsvc_sink_behind_events", "Events that a broker has not got yet.", ("sink",), of_all="livemax"
)
lag_seconds: Final = metrics.histogram(
    "couponsvc_sink_lag_seconds",
    "Time from the commit of the oldest event of a turn until the broker had it.",
    ("sink",),
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0, 600.0, 3_600.0),
)
