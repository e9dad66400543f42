"""An even load that goes on for minutes: requests are signed while those before are being sent.

A signature is good for five minutes only, so an outage of five minutes cannot be prepared beforehand.
"""

import asyncio
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final

from bench.open_loop import OpenLoopResult, run_apart
from bench.request_file import write_requests
from bench.scale.service import Service

PIECE_S: Final = 10.0
CONNECTIONS: Final = 4_000
PATIENCE_S: Final = 10.0
"""For the last answers of a piece: a grab waits two seconds for its commit, longer where all is slow."""


class Load:
    """Grabs of one drop, each by a new person; a context that ends the load."""

    def __init__(self, service: Service, drop_id: str, rate_per_s: float) -> None:
        self._service: Final = service
        self._drop_id: Final = drop_id
        self._rate_per_s: Final = rate_per_s
        self._stop: Final = asyncio.Event()
        self._pieces: list[asyncio.Task[OpenLoopResult]] = []

    async def run(self) -> Counter[int]:
        """Send until `end`; answers by status, 0 for requests that were sent or due and never answered."""
        loop = asyncio.get_running_loop()
        with tempfile.TemporaryDirectory(prefix="couponsvc-bench-") as directory:
            try:
                path = await asyncio.to_thread(self._prepare, Path(directory), 0)
                due = loop.time()
                while not self._stop.is_set():
                    self._pieces.append(asyncio.create_task(self._send(path)))
                    due += PIECE_S
                    path = await asyncio.to_thread(self._prepare, Path(directory), len(self._pieces))
                    try:
                        await asyncio.wait_for(self._stop.wait(), max(0.0, due - loop.time()))
                    except TimeoutError:
                        continue
                results = await asyncio.gather(*self._pieces)
            finally:
                for piece in self._pieces:
                    piece.cancel()
                await asyncio.gather(*self._pieces, return_exceptions=True)
        answers: Counter[int] = Counter()
        for result in results:
            answers.update(result.answered)
            answers[0] += result.unanswered
        return answers

    def end(self) -> None:
        """Send no more than what has begun."""
        self._stop.set()

    def _prepare(self, directory: Path, place: int) -> Path:
        path = directory / f"{place}.requests"
        count = int(self._rate_per_s * PIECE_S) + 1
        write_requests(path, self._service.grabs([self._drop_id], count, f"outage-{place}"))
        return path

    async def _send(self, path: Path) -> OpenLoopResult:
        try:
            return await run_apart(
                self._service.url, path, rate_per_s=self._rate_per_s, duration_s=PIECE_S,
                connections=CONNECTIONS, patience_s=PATIENCE_S,
            )  # fmt: skip
        finally:
            path.unlink()
