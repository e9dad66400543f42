"""Waiting until the service answers `/readyz` with 200."""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from couponsvc.processes.running import EXIT_UNREACHABLE, EXIT_USAGE, ProcessFailed
from couponsvc.processes.supervisor import ProcessUnit

READY_PATIENCE_S: Final = 120.0
"""A rebuild of a lost Redis with millions of holders takes up to tens of seconds."""
ASK_EVERY_S: Final = 0.05
ASK_TIMEOUT_S: Final = 5.0
ANSWER_MAX_BYTES: Final = 64 * 1024
FATAL_EXIT_CODES: Final = (EXIT_USAGE, EXIT_UNREACHABLE)
"""A process that ends so at its first start has said why, and would say it again."""


async def wait_until_ready(host: str, port: int, units: Sequence[ProcessUnit]) -> None:
    """Return when the service is ready.

    Raises:
        ProcessFailed: a process refuses to start, or time is up; says what is missing.
    """
    give_up_at = time.monotonic() + READY_PATIENCE_S
    answer = "no answer"
    while time.monotonic() < give_up_at:
        for unit in units:
            if unit.exit_code in FATAL_EXIT_CODES:
                raise ProcessFailed(
                    f"{unit.name} does not start (exit {unit.exit_code}); its reason is above",
                    EXIT_UNREACHABLE,
                )
        ready, answer = await ask(host, port, answer)
        if ready:
            return
        await asyncio.sleep(ASK_EVERY_S)
    raise ProcessFailed(f"not ready within {READY_PATIENCE_S:.0f} s: {answer}", EXIT_UNREACHABLE)


async def ask(host: str, port: int, otherwise: str) -> tuple[bool, str]:
    """Ask once on a connection of its own: whether ready, and what was answered (body, one line)."""
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(_reachable(host), port)
            try:
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                received = await reader.read(ANSWER_MAX_BYTES)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False, otherwise
    head, _, body = received.partition(b"\r\n\r\n")
    return head.startswith(b"HTTP/1.1 200"), " ".join(body.decode("utf-8", "replace").split()) or otherwise


def _reachable(host: str) -> str:
    """Where to ask a service that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
