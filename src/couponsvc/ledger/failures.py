"""Tells which failures pass by themselves, so that the same batch is run again, unchanged."""

import random
from typing import Final

import asyncpg

from couponsvc.values.wire import MalformedEntry

BACKOFF_FIRST_S: Final = 0.05
BACKOFF_MAX_S: Final = 2.0
"""A server that is back is noticed within this; a restart takes longer than the first steps."""

RACED_FOR: Final = "vouchers_one_per_request"
"""The one constraint that a transaction on another drop can take in between."""


def contradicts_the_schema(error: BaseException) -> bool:
    """Whether Postgres refuses the data themselves: repeating them can never succeed.

    Everything else (the server is away, restarting, out of disk, read-only, too slow, a lock not
    given) may pass, and grants wait for it: giving up would break a promise. So may a lost race
    for a number, whose winner is seen the next time.
    """
    if getattr(error, "constraint_name", None) == RACED_FOR:
        return False
    return isinstance(
        error,
        asyncpg.DataError
        | asyncpg.exceptions._base.DataError  # noqa: SLF001 - what encoding arguments raises; not exported
        | asyncpg.IntegrityConstraintViolationError
        | MalformedEntry,
    )


def may_pass(error: BaseException) -> bool:
    """Whether waiting is the known cure: the server is away, restarting, or slow.

    Of anything else an operator should hear at once (a wrong master key, a missing privilege),
    though the batch is repeated all the same.
    """
    return isinstance(
        error,
        OSError
        | TimeoutError
        | asyncpg.InterfaceError
        | asyncpg.InternalClientError
        | asyncpg.PostgresConnectionError
        | asyncpg.OperatorInterventionError
        | asyncpg.InsufficientResourcesError
        | asyncpg.TransactionRollbackError
        | asyncpg.LockNotAvailableError,
    )


class Backoff:
    """Waiting times that double up to a bound, each with jitter so that processes spread out."""

    def __init__(self) -> None:
        self._next_s = BACKOFF_FIRST_S

    def reset(self) -> None:
        """Begin anew, after a success."""
        self._next_s = BACKOFF_FIRST_S

    def next_s(self) -> float:
        """Seconds to wait now: between half of the step and all of it."""
        step = self._next_s
        self._next_s = min(BACKOFF_MAX_S, step * 2)
        return step * (0.5 + random.random() / 2)  # noqa: S311 - spreads load, guards nothing
