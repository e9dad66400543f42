"""The demo's partner as the parent sees it: subscribed, started, killed at random, started again."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from couponsvc.client import EVENT_TYPES, ApiRefused, PartnerClient, Unreachable
from couponsvc.demo.cpu import pids_of
from couponsvc.demo.hearing import Books
from couponsvc.demo.partner import PartnerPlan
from couponsvc.demo.partner_ledger import PartnerLedger

KILL_EVERY_S: Final = (0.5, 1.5)
"""Pause between two kills, at random within this."""
DOWN_S: Final = (0.05, 0.5)
"""How long the partner stays away after it was killed."""
HEARD_PATIENCE_S: Final = 120.0
"""Retries come after 5 s, and a receiver that fails is probed with growing pauses. The judge says what is
missing."""
LOOK_EVERY_S: Final = 0.25


class PartnerProcess:
    """A subscribed partner; a context that leaves no process behind.

    Args:
        client: with the partner's own key; closed with this.
        directory: for its ledger; removed by whoever made it.
    """

    def __init__(self, client: PartnerClient, directory: Path) -> None:
        self._ledger_path: Final = directory / "partner.db"
        self._process: subprocess.Popen[bytes] | None = None
        port = _free_port()
        self._client: Final = client
        self._subscription: Final = client.subscribe(f"http://127.0.0.1:{port}/events", EVENT_TYPES)
        self._plan: Final = PartnerPlan(port, [self._subscription.secret], str(self._ledger_path))
        self.kills: Final = {"relay": 0, "partner": 0}

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()
        with self._client, contextlib.suppress(Unreachable, ApiRefused):  # it may be gone before us
            self._client.unsubscribe(self._subscription.subscription_id)

    async def kill_at_random(self, service_pid: int, dice: random.Random) -> None:
        """Kill (SIGKILL) the relay or the partner, again and again, until cancelled."""
        try:
            while True:
                await asyncio.sleep(dice.uniform(*KILL_EVERY_S))
                if dice.random() < 0.5:  # noqa: PLR2004 - either
                    self.kills["relay"] += _kill_relays(service_pid)
                    continue
                self._kill()
                self.kills["partner"] += 1
                await asyncio.sleep(dice.uniform(*DOWN_S))
                self._start()
        finally:
            if self._process is None:
                self._start()

    async def until_heard(
        self, vouchers_count: int, complete: Callable[[Books], bool], say: Callable[[str], None]
    ) -> None:
        """Wait until the partner knows so many vouchers and its books are complete, or patience ends."""
        give_up_at = time.monotonic() + HEARD_PATIENCE_S
        heard_count = 0
        with PartnerLedger(self._ledger_path) as ledger:
            while time.monotonic() < give_up_at:
                heard_count = ledger.vouchers_count()
                if heard_count >= vouchers_count and complete(Books(ledger.events(), ledger.vouchers())):
                    return
                await asyncio.sleep(LOOK_EVERY_S)
        say(
            f"after {HEARD_PATIENCE_S:.0f} s the partner knows {heard_count:,} of {vouchers_count:,} vouchers"
        )

    def books(self) -> Books:
        """What it wrote down so far."""
        with PartnerLedger(self._ledger_path) as ledger:
            return Books(ledger.events(), ledger.vouchers())

    def _start(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "couponsvc.demo.partner"], stdin=subprocess.PIPE, start_new_session=True
        )
        assert process.stdin is not None  # noqa: S101
        process.stdin.write(msgspec.json.encode(self._plan) + b"\n")
        process.stdin.close()
        self._process = process

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


def _kill_relays(service_pid: int) -> int:
    killed = 0
    for pid in pids_of(service_pid, "relay"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed += 1
    return killed


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
