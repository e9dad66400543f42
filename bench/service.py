"""Our service for the bench: a `couponsvc up` on engines of its own, and what the rows ask of it."""

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx2
import msgspec

from bench.cpu import PROC, read_processes
from couponsvc.client import ApiClient, GrabClient
from couponsvc.demo.stack import Stack

PROGRAM_ID: Final = "qingdao-2022"
TEMPLATE_ID: Final = "dining-20"
PARTNER_ID: Final = "bank-a"
OPEN_PATIENCE_S: Final = 10.0
SETTLE_PATIENCE_S: Final = 20.0
"""For the drainer to write what was only granted: some ten thousand vouchers at most."""
TALLY_PATIENCE_S: Final = 2.0
"""The API's counts trail by a quarter of a second."""
POLL_S: Final = 0.02
LEDGER_PAGE_COUNT: Final = 10_000
CHECK_TIMEOUT_S: Final = 120
_ANSWERS: Final = re.compile(r'^couponsvc_grab_answers_total\{answer="(\w+)"\} (\S+)$', re.MULTILINE)
_STATUSES: Final = re.compile(r'^couponsvc_grab_requests_total\{status="(\d+)"\} (\S+)$', re.MULTILINE)
UNTOLD: Final = """
WITH known AS (
  SELECT drop_no, issued, coalesce(told_seq, 0) AS told_seq
  FROM drops LEFT JOIN drop_tellings USING (drop_no) WHERE drop_id = $1
), waiting AS (
  SELECT first_seq, last_seq, lag(last_seq, 1, told_seq) OVER (ORDER BY first_seq) AS before
  FROM known JOIN outbox USING (drop_no) WHERE first_seq IS NOT NULL
)
SELECT abs(issued - told_seq - (SELECT coalesce(sum(last_seq - first_seq + 1), 0) FROM waiting))
       + (SELECT count(*) FROM waiting WHERE first_seq <> before + 1)
       + abs(told_seq - (SELECT coalesce(sum(voucher_count), 0) FROM events WHERE drop_no = known.drop_no))
FROM known
"""
"""0 if events tell of the vouchers up to told_seq and the outbox's ranges tile those from there to issued.
A relay moves rows from one to the other meanwhile; one statement sees each in one place."""


class Counts(msgspec.Struct, frozen=True):
    """Answers to grabs so far: by kind (`values.answer.AnswerKind`) and by status."""

    kinds: dict[str, int]
    statuses: dict[str, int]

    def since(self, earlier: "Counts") -> "Counts":
        """What came on top."""
        return Counts(_difference(self.kinds, earlier.kinds), _difference(self.statuses, earlier.statuses))


def _difference(later: dict[str, int], earlier: dict[str, int]) -> dict[str, int]:
    differences = {name: count - earlier.get(name, 0) for name, count in later.items()}
    return {name: count for name, count in differences.items() if count}


class Service:
    """A running `couponsvc up` and its development credentials."""

    def __init__(self, stack: Stack) -> None:
        self._stack: Final = stack
        self.url: Final = stack.run.url
        self.roots: Final = find_roots(stack.pid)
        held: dict[str, Any] = msgspec.json.decode((stack.data_dir / "credentials.json").read_bytes())
        self.partner_token: Final[str] = held["partner"]["token"]
        self.signer: Final = GrabClient(self.url, stack.credentials.signing_key())
        self._operator: Final = ApiClient(self.url, stack.credentials.operator_token)

    def close(self) -> None:
        """Close the clients; the stack is its owner's to stop."""
        self._operator.close()
        self.signer.close()

    def define_drop(self, drop_id: str, quantity: int) -> None:
        """Make an open drop, with program and template, and wait until it is open."""
        now = datetime.now(UTC)
        self._operator.put(f"/v1/programs/{PROGRAM_ID}", {"name": "Bench", "region": "370200"})
        terms = {"name": "Bench", "face_value_fen": 2000, "min_spend_fen": 6000, "valid_for_hours": 48}
        self._operator.put(f"/v1/programs/{PROGRAM_ID}/templates/{TEMPLATE_ID}", terms)
        body = {
            "program_id": PROGRAM_ID,
            "template_id": TEMPLATE_ID,
            "quantity": quantity,
            "per_person_limit": 1,
            "opens_at": (now - timedelta(minutes=1)).isoformat(),
            "closes_at": (now + timedelta(hours=2)).isoformat(),
            "partners": [PARTNER_ID],
        }
        self._operator.put(f"/v1/drops/{drop_id}", body)
        give_up_at = time.monotonic() + OPEN_PATIENCE_S
        while (state := self.figures(drop_id)["state"]) != "open":
            assert time.monotonic() < give_up_at, f"the drop does not open: {state}"
            time.sleep(POLL_S)

    def figures(self, drop_id: str) -> dict[str, Any]:
        """A drop as the API shows it."""
        return self._operator.get(f"/v1/drops/{drop_id}")

    async def settled(self, drop_id: str) -> dict[str, Any]:
        """The figures once nothing is pending, or as they are when patience is at its end."""
        give_up_at = time.monotonic() + SETTLE_PATIENCE_S
        while True:
            figures = self.figures(drop_id)
            if not figures["pending"] or time.monotonic() > give_up_at:
                return figures
            await asyncio.sleep(POLL_S)

    def counts(self) -> Counts:
        """Answers so far, of all API processes, as far as they have been carried over to the metrics."""
        text = httpx2.get(f"{self.url}/metrics", timeout=10, trust_env=False).text
        return Counts(
            {name: int(float(value)) for name, value in _ANSWERS.findall(text)},
            {status: int(float(value)) for status, value in _STATUSES.findall(text)},
        )

    async def counts_since(self, earlier: Counts, answered: int) -> Counts:
        """Answers since `earlier`, as soon as there are `answered` of them."""
        give_up_at = time.monotonic() + TALLY_PATIENCE_S
        while True:
            counts = self.counts().since(earlier)
            if sum(counts.statuses.values()) >= answered or time.monotonic() > give_up_at:
                return counts
            await asyncio.sleep(POLL_S)

    def ledger(self, drop_id: str) -> Iterator[dict[str, Any]]:
        """Every voucher of a drop in sequence order, by the auditor's export."""
        decode = msgspec.json.Decoder(dict[str, Any]).decode
        headers = {"authorization": f"Bearer {self._stack.credentials.auditor_token}"}
        with httpx2.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False) as client:
            after = 0
            while True:
                page = client.get(
                    f"/v1/drops/{drop_id}/ledger", params={"after_seq": after, "limit": LEDGER_PAGE_COUNT}
                ).raise_for_status()
                lines = page.content.splitlines()
                yield from (decode(line) for line in lines)
                after += len(lines)
                if len(lines) < LEDGER_PAGE_COUNT:
                    return

    async def untold(self, drop_id: str) -> int:
        """By how many vouchers events and outbox together miss what a drop issued, by SQL (I7)."""
        connection = await asyncpg.connect(self._stack.run.postgres_dsn)
        try:
            return int(await connection.fetchval(UNTOLD, drop_id))
        finally:
            await connection.close()

    async def check(self) -> tuple[int, str]:
        """`couponsvc check` on everything: exit code and table."""
        command = [sys.executable, "-m", "couponsvc", "check", "--data-dir", str(self._stack.data_dir)]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), CHECK_TIMEOUT_S)
        finally:
            if process.returncode is None:
                process.kill()
        return process.returncode or 0, output.decode(errors="replace")


def find_roots(up_pid: int) -> dict[str, tuple[int, ...]]:
    """Kind of process → process ids of an `up`: its children by kind, and itself as `up`."""
    roots: dict[str, tuple[int, ...]] = {"up": (up_pid,)}
    for pid, process in read_processes().items():
        if process.parent == up_pid:
            kind = kind_of((PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0"))
            roots[kind] = (*roots.get(kind, ()), pid)
    return roots


def kind_of(words: list[str]) -> str:
    """What a child of `up` is by its command line: `redis`, `postgres`, or the command of couponsvc."""
    program = Path(words[0].split(" ")[0]).name
    for kind, names in (("redis", ("valkey", "redis")), ("postgres", ("postgres",))):
        if program.startswith(names):
            return kind
    place = words.index("couponsvc") + 1 if "couponsvc" in words[:-1] else 0
    return words[place] if place else program
