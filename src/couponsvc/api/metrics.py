"""What the API tells of itself: requests by route and status, and how long they took."""

from typing import Final

from couponsvc.support import metrics

_REQUESTS: Final = metrics.counter(
    "couponsvc_http_requests", "HTTP requests answered, grabs aside.", ["route", "method", "status"]
)
_SECONDS: Final = metrics.histogram(
    "couponsvc_http_request_seconds",
    "Time from request to answer, grabs and waits for events aside.",
    ["route"],
)
KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"})
"""A label's values must be few: any other method is counted as OTHER."""


def request_answered(route: str, method: str, status: int, seconds: float) -> None:
    """Count one answered request. `route` is a path template, never a path."""
    _REQUESTS.labels(route, method if method in KNOWN_METHODS else "OTHER", str(status)).inc()
    _SECONDS.labels(route).observe(seconds)
