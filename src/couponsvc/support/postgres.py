"""Connections to Postgres, bounded in number and time."""

from typing import Any

import asyncpg

from couponsvc import limits


async def open_pool(
    dsn: str, *, max_size: int = 8, statement_timeout_ms: int = limits.STATEMENT_TIMEOUT_MS
) -> "asyncpg.Pool[asyncpg.Record]":
    """Open a pool whose statements and locks cannot wait for ever, and whose commits are durable.

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
    )


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
