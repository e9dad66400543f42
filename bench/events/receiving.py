"""The bench's end of a receiver, and what it reports."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

WELL: Final = "well"
BAD: Final = ("silent", "slow", "drip")
START_TIMEOUT_S: Final = 20.0


class Received(NamedTuple):
    """What came since the last report. Lags are from commit to receipt, voucher by voucher."""

    events: int
    vouchers: int
    repeated: int
    """Events that came more than once."""
    refused: int
    """Requests whose signature or form was wrong."""
    missing: int
    """Numbers of drops that never came, below the highest that did."""
    first_s: float
    last_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float

    @property
    def lag(self) -> str:
        """For people."""
        return f"p50 {self.p50_ms:,.0f} ms, p99 {self.p99_ms:,.0f} ms, longest {self.max_ms:,.0f} ms"


class WrongDeliveries(RuntimeError):
    """What was received is not what was sent; the figures mean nothing."""


class Receiver:
    """A receiver process; made by `receiver`."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process = process
        self.pid: Final = process.pid
        self._origin = f"http://127.0.0.1:{port}"

    def url(self, manner: str = WELL) -> str:
        """Where to deliver; `manner` says how it answers."""
        return f"{self._origin}/{manner}"

    async def trust(self, secret: str) -> None:
        """Take the secret of a subscription."""
        await self._ask({"trust": secret})

    async def report(self) -> Received:
        """What came since the last report.

        Raises:
            WrongDeliveries: a signature was wrong.
        """
        received = Received(**await self._ask({"report": True}))
        if received.refused:
            raise WrongDeliveries(f"{received.refused} webhooks were not signed as they should be")
        return received

    async def count(self) -> int:
        """Vouchers that came since the last report."""
        return int((await self._ask({"count": True}))["vouchers"])

    async def forget_drops(self) -> None:
        """Forget which events and numbers came: another ledger has the same ones."""
        await self._ask({"forget": True})

    async def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        answer: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return answer


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    """Start a receiver; ended with the context.

    Raises:
        TimeoutError: it does not start.
    """
    pipe = asyncio.subprocess.PIPE
    root = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.events.receiver", stdin=pipe, stdout=pipe, cwd=root
    )
    try:
        assert process.stdout is not None
        port = int(await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT_S))
        yield Receiver(process, port)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
