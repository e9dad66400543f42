"""What the reconciler shows of itself. Drops are few, so their names may be labels."""

from typing import Final

from couponsvc.support import metrics

DRIFT: Final = metrics.gauge(
    "couponsvc_drift_vouchers",
    "By how many vouchers a drop's conservation fails, as last looked at; 0 is right.",
    ["drop_id"],
    of_all="livemostrecent",
)
REBUILDS: Final = metrics.counter("couponsvc_rebuilds", "Drops loaded into Redis again.", ["drop_id"])
REBUILD_CLOSED_SECONDS: Final = metrics.histogram(
    "couponsvc_rebuild_closed_seconds",
    "How long a drop was closed for its rebuild.",
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60),
)
BLESSING_SECONDS: Final = metrics.histogram(
    "couponsvc_blessing_seconds",
    "How long the check of an unknown Redis server took, drops rebuilt included.",
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60),
)
LAST_LOOK: Final = metrics.gauge(
    "couponsvc_reconcile_last_look_timestamp_seconds",
    "When every drop of the shard was last looked at, in Unix time.",
    of_all="livemostrecent",
)
