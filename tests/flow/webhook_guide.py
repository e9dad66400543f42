"""docs/webhooks.md as tests use it: its blocks, its receiver as a real process, its shell commands."""

import asyncio
import base64
import contextlib
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx2

from tests.flow.conftest import free_port

GUIDE: Final = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text("utf-8")
RECEIVER: Final = next(
    block for block in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if "Receiver" in block
)
SECRET, OTHER = (f"whsec_{base64.b64encode(bytes([n]) * 32).decode()}" for n in (1, 2))


def block(kind: str, containing: str) -> str:
    """The one block of a kind that contains a text."""
    (found,) = (text for text in re.findall(rf"```{kind}\n(.*?)```", GUIDE, re.DOTALL) if containing in text)
    return str(found)


@dataclass
class Receiver:
    """The guide's receiver, running."""

    port: int
    ledger: Path
    directory: Path
    http: httpx2.AsyncClient
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/events"

    async def start(self, *secrets: str) -> None:
        """(Re)start it with these secrets; returns when it listens."""
        self.stop()
        script = self.directory / "receiver.py"
        script.write_text(RECEIVER)
        with (self.directory / "receiver.log").open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-W", "error", str(script), str(self.port), str(self.ledger)],
                env={"WEBHOOK_SECRETS": " ".join(secrets), "PATH": os.defpath},
                stderr=log,
            )
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                await writer.wait_closed()
                return
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, "the receiver does not listen"
            await asyncio.sleep(0.02)

    def stop(self) -> None:
        """As by kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    async def post(self, body: bytes, headers: dict[str, str]) -> int:
        sent = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        return (await self.http.post(self.url, content=body, headers=sent)).status_code

    def log(self) -> str:
        return (self.directory / "receiver.log").read_text("utf-8", "replace")

    def events(self) -> set[str]:
        return {str(row[0]) for row in self._rows("SELECT id FROM events")}

    def vouchers(self) -> set[tuple[str, str, str]]:
        rows = self._rows("SELECT voucher_id, person_token, code FROM vouchers")
        return {(str(one), str(two), str(three)) for one, two, three in rows}

    def forget(self) -> None:
        """Empty its books."""
        self.stop()
        self.ledger.unlink()

    def _rows(self, statement: str) -> list[tuple[object, ...]]:
        with contextlib.closing(sqlite3.connect(self.ledger)) as database:
            return database.execute(statement).fetchall()


@contextlib.asynccontextmanager
async def receiving(directory: Path, *secrets: str) -> AsyncIterator[Receiver]:
    """The guide's receiver on a free port; not started where no secret is given."""
    async with httpx2.AsyncClient(trust_env=False, verify=False) as http:
        receiver = Receiver(free_port(), directory / "partner.db", directory, http)
        try:
            if secrets:
                await receiver.start(*secrets)
            yield receiver
        finally:
            receiver.stop()


async def shell(script: str) -> str:
    """Run a block of the guide."""
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-eu",
        "-o",
        "pipefail",
        "-c",
        script,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return out.decode()
