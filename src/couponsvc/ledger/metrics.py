"""What the ledger stage counts and measures."""

from typing import Final

from couponsvc.support import metrics
from couponsvc.support.tally import Tally
from couponsvc.values.outcome import Verdict

GRANTS_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 4_000)
"""Up to limits.DRAIN_GRANTS_MAX_COUNT."""

commits: Final[Tally[str]] = Tally(
    metrics.counter(
        "couponsvc_ledger_commits", "Transactions by path; slow: something had to be ruled on.", ("path",)
    ),
    metrics.histogram("couponsvc_ledger_commit_seconds", "Time from a batch of grants to its known commit."),
    label_of=str,
)
verdicts: Final[Tally[Verdict]] = Tally(
    metrics.counter("couponsvc_ledger_verdicts", "Grants by verdict.", ("verdict",)),
    metrics.histogram(
        "couponsvc_ledger_grants_per_commit", "Grants merged into one transaction.", buckets=GRANTS_BUCKETS
    ),
    label_of=lambda verdict: verdict.name.lower(),
)
races_lost: Final = metrics.counter(
    "couponsvc_ledger_races_lost", "Slow transactions repeated because another one took a number."
)
pending_age_seconds: Final = metrics.gauge(
    "couponsvc_ledger_pending_age_seconds", "Age of the oldest grant of the last batch.", of_all="livemax"
)
backlog: Final = metrics.gauge(
    "couponsvc_ledger_backlog_grants", "Grants on the stream that are not acknowledged.", of_all="livemax"
)
repeats: Final = metrics.counter(
    "couponsvc_ledger_repeats", "Batches run again: Postgres was away or the outcome unknown."
)
take_overs: Final = metrics.counter(
    "couponsvc_ledger_take_overs", "Stream entries taken over from another drainer."
)
dead_letters: Final = metrics.counter(
    "couponsvc_ledger_dead_letters", "Stream entries that could not be read and were set aside."
)
redis_absences: Final = metrics.counter(
    "couponsvc_ledger_redis_absences", "Turns that ended early because Redis was away or a reply was lost."
)
