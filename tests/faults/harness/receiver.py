"""A partner's receiver of webhooks as a member: it may be killed, and answers only what it has kept."""

import sqlite3
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from couponsvc.client import VOUCHER_ISSUED, PartnerClient
from couponsvc.demo.partner import PartnerPlan
from couponsvc.engines.engine import HOST, free_port
from couponsvc.support.signing import HmacKey
from tests.faults.harness.final import Heard
from tests.faults.harness.members import ProcessMember

KIND: Final = "receiver"
EVENTS: Final = "SELECT id, body FROM events ORDER BY received_ms"


class ReceiverMember(ProcessMember):
    """The demo's partner: verifies each event, commits it to its own database, then answers 204.

    Args:
        partner_id: Whose receiver it is; subscribed by `subscribe`, before it is started.
        base: Directory of its plan and database.
    """

    def __init__(self, partner_id: str, environment: Mapping[str, str], base: Path, log_path: Path) -> None:
        super().__init__(KIND, KIND, environment, log_path)
        self.partner_id: Final = partner_id
        self._plan_path: Final = base / "receiver.plan"
        self._database_path: Final = base / "receiver.db"

    def subscribe(self, url: str, key: HmacKey) -> None:
        """Subscribe to the vouchers of the partner.

        Raises:
            ApiRefused, Unreachable: the service does not take it.
        """
        port = free_port()
        with PartnerClient(url, key.key_id, key) as client:
            made = client.subscribe(f"http://{HOST}:{port}/events", [VOUCHER_ISSUED])
        plan = PartnerPlan(port, [made.secret], str(self._database_path))
        self._plan_path.touch(0o600)  # it holds a secret
        self._plan_path.write_bytes(msgspec.json.encode(plan) + b"\n")

    def heard(self) -> list[Heard]:
        """Every event that it kept, as it came first."""
        if not self._database_path.exists():
            return []
        with closing(sqlite3.connect(self._database_path)) as database:
            return [Heard(self.partner_id, *row) for row in database.execute(EVENTS)]

    def _command(self) -> Sequence[str]:
        # The plan comes on standard input; `exec` keeps the process the one that was started.
        serve = 'exec "$0" -m couponsvc.demo.partner < "$1"'
        return ["/bin/sh", "-c", serve, sys.executable, str(self._plan_path)]
