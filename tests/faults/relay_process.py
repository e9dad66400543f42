"""`couponsvc relay` as a real process."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from couponsvc.settings import Settings


class RelayProcess:
    """One relay that may deliver to loopback."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.log_path = log
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("COUPONSVC_")},
            "COUPONSVC_REDIS_URL": settings.redis_url,
            "COUPONSVC_POSTGRES_DSN": settings.postgres_dsn.get_secret_value(),
            "COUPONSVC_MASTER_KEY": settings.master_key.get_secret_value(),
            "COUPONSVC_WEBHOOK_ALLOW_PRIVATE": "true",
        }
        if settings.nats_url is not None:
            environment["COUPONSVC_NATS_URL"] = settings.nats_url.get_secret_value()
        with log.open("ab") as output:
            self.process: subprocess.Popen[Any] = subprocess.Popen(
                [sys.executable, "-m", "couponsvc", "relay"],
                stdout=output,
                stderr=output,
                env=environment,
            )

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def log(self) -> str:
        return self.log_path.read_text("utf-8", "replace")


@contextlib.contextmanager
def running(settings: Settings, log: Path) -> Iterator[RelayProcess]:
    """A relay that is killed at the end, whatever state it is in."""
    relay = RelayProcess(settings, log)
    try:
        yield relay
    finally:
        relay.process.kill()
        relay.process.wait()
