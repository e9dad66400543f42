"""Connections to Postgres, bounded in number and time."""

from typing import Any

import asyncpg

from couponsvc import limits


async def open_pool(
    dsn: str,
    *,
    max_size: int = 8,
    statement_timeout_ms: int = limits.STATEMENT_TIMEOUT_MS,
    reset_sessions: bool = True,
) -> "asyncpg.Pool[asyncpg.Record]":
    """Open a pool whose statements and locks cannot wait for ever, and whose commits are durable.

    Args:
        dsn: of the database.
        max_size: connections at most.
        statement_timeout_ms: for each statement.
        reset_sessions: False for who changes nothing of a session (no SET, no LISTEN, no session
            lock) and asks often: it saves an exchange with the server after every use.

    Raises:
        OSError, asyncpg.PostgresError: the server cannot be reached or refuses.
    """
    return await asyncpg.create_pool(
        dsn,
        min_size=1,
        max_size=max_size,
        timeout=limits.LOCK_TIMEOUT_MS / 1000,
        command_timeout=statement_timeout_ms / 1000 + 1,
        server_settings=server_settings(statement_timeout_ms),
        reset=None if reset_sessions else _leave_as_it_is,
    )


async def _leave_as_it_is(_: "asyncpg.Connection[asyncpg.Record]") -> None:
    """In place of the reset of a session; an open transaction has been undone before."""


def server_settings(statement_timeout_ms: int) -> dict[str, Any]:
    """Session settings of every connection of ours."""
    return {
        "application_name": "couponsvc",
        "statement_timeout": str(statement_timeout_ms),
        "lock_timeout": str(min(limits.LOCK_TIMEOUT_MS, statement_timeout_ms)),
        "idle_in_transaction_session_timeout": str(statement_timeout_ms),
        "synchronous_commit": "on",
        "timezone": "UTC",
    }
