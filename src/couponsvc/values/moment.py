"""Moments on the wire: RFC 3339 UTC with milliseconds, from integer milliseconds."""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

MILLISECONDS_PER_SECOND = 1_000
HOUR_MS: Final = 3_600 * MILLISECONDS_PER_SECOND


@lru_cache(maxsize=4096)  # a committed batch shares one moment; validity ends repeat per drop
def rfc3339(unix_ms: int) -> str:
    """Write a moment: `2026-10-01T02:00:00.000Z`."""
    seconds, milliseconds = divmod(unix_ms, MILLISECONDS_PER_SECOND)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds:03d}Z"


def unix_ms(moment: datetime) -> int:
    """Integer milliseconds of an aware datetime, sub-millisecond part dropped.

    Raises:
        ValueError: the datetime has no time zone.
    """
    if moment.tzinfo is None:
        message = f"{moment.isoformat()} has no time zone; write one, e.g. +08:00 or Z"
        raise ValueError(message)
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * MILLISECONDS_PER_SECOND + (
        delta.microseconds // MILLISECONDS_PER_SECOND
    )
