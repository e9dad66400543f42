"""What the outbox stage counts and measures. A subscription's name may be a label, its URL may not."""

from typing import Final

from couponsvc.support import metrics

LAG_BUCKETS_S: Final = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),  # a receiver that answers
    *(10.0, 60.0, 600.0, 3_600.0, 21_600.0, 86_400.0, 300_000.0),  # one that comes back
)

lag_seconds: Final = metrics.histogram(
    "couponsvc_delivery_lag_seconds",
    "Time from an event's commit to the receiver's acceptance of it.",
    buckets=LAG_BUCKETS_S,
)
attempts: Final = metrics.counter(
    "couponsvc_delivery_attempts",
    "Attempts to deliver, by outcome: delivered, failed, gone.",
    ("subscription_id", "outcome"),
)
parked: Final = metrics.counter("couponsvc_deliveries_given_up", "Deliveries parked, whatever for.")
in_flight: Final = metrics.gauge("couponsvc_deliveries_in_flight", "Deliveries under way at this moment.")
queued: Final = metrics.gauge(
    "couponsvc_deliveries_queued",
    "Deliveries that wait or are under way; parked ones are not among them.",
    of_all="livemostrecent",
)
parked_now: Final = metrics.gauge(
    "couponsvc_deliveries_parked", "Deliveries given up until somebody asks.", of_all="livemostrecent"
)
oldest_undelivered_seconds: Final = metrics.gauge(
    "couponsvc_deliveries_oldest_seconds",
    "For how long the oldest delivery that is not parked has been queued.",
    of_all="livemostrecent",
)
outbox_rows: Final = metrics.gauge(
    "couponsvc_outbox_rows", "Outbox rows that no relay has numbered yet.", of_all="livemostrecent"
)
outbox_oldest_seconds: Final = metrics.gauge(
    "couponsvc_outbox_oldest_seconds", "Age of the oldest of them.", of_all="livemostrecent"
)
outbox_unknown_rows: Final = metrics.gauge(
    "couponsvc_outbox_unknown_rows", "Outbox rows of kinds that only a newer version knows.", of_all="livemax"
)
outbox_misfit_drops: Final = metrics.gauge(
    "couponsvc_outbox_misfit_drops",
    "Drops whose outbox rows do not follow what partners were told; their events wait.",
    of_all="livemax",
)
leases_freed: Final = metrics.counter(
    "couponsvc_delivery_leases_freed", "Deliveries taken from a relay that is dead or was paused too long."
)
task_failures: Final = metrics.counter(
    "couponsvc_relay_task_failures", "Turns of a relay's task that ended in an error.", ("task",)
)
clock_difference_seconds: Final = metrics.gauge(
    "couponsvc_relay_clock_difference_seconds",
    "By how much this machine's wall clock is ahead of Postgres'; relays go by the latter.",
    of_all="livemostrecent",
)
untried: Final = metrics.counter(
    "couponsvc_deliveries_untried",
    "Deliveries put off by a second because too many names were being looked up; no attempt is counted.",
)
