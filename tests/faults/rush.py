"""A whole service in its own processes, a crowd that behaves like partners, and who kills what.

The crowd keeps every answer it ever got; `Rush.judge` compares them with the final state.
"""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic, sleep
from types import MappingProxyType
from typing import Any, Final, Literal

from couponsvc.client import ApiClient, ApiRefused, GrabClient, Retries, Unreachable, grab_until_answered
from couponsvc.support.signing import HmacKey

READY_S: Final = 60.0
STOP_S: Final = 30.0
ENGINE_NAMES: Final = {"redis": ("valkey-server", "redis-server"), "postgres": ("postgres",)}
"""What an engine's processes are called: embedded or of the system."""
PATIENCE: Final = Retries(attempts_max_count=60, pause_s=0.1, pause_max_s=1.0)
"""Longer than any fault here lasts: a partner that never gives up within a minute."""


class Outdone(Exception):
    """More vouchers are issued than the definition allows."""


@dataclass
class Up:
    """A running `couponsvc up` on a data directory of its own."""

    process: "subprocess.Popen[bytes]"
    data_dir: Path
    url: str
    credentials: dict[str, dict[str, str]]

    @property
    def key(self) -> HmacKey:
        partner = self.credentials["partner"]
        return HmacKey(partner["key_id"], base64.b64decode(partner["secret"]))

    def operator(self) -> ApiClient:
        return ApiClient(self.url, self.credentials["operator"]["token"])

    def pids(self, kind: str) -> list[int]:
        """Process ids below `up`: `api`, `drain`, `reconcile`, `redis` or `postgres`."""
        found = []
        for pid, command in descendants(self.process.pid):
            name = Path(command[0].split()[0]).name.rstrip(":")
            if name in ENGINE_NAMES.get(kind, ()) or (
                len(command) > 3 and command[2] == "couponsvc" and command[3] == kind
            ):
                found.append(pid)
        return found

    def wait_for(self, kind: str) -> list[int]:
        """Wait until a process of a kind runs: it may be on its way back."""
        deadline = monotonic() + READY_S
        while not (pids := [pid for pid in self.pids(kind) if _runs(pid)]):
            assert monotonic() < deadline, f"no {kind} comes back"
            sleep(0.02)
        return pids

    def kill(self, kind: str) -> None:
        """SIGKILL every process of a kind."""
        for pid in self.wait_for(kind):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def supervision_paused(self) -> Iterator[None]:
        """Nothing that dies in here is restarted until the block ends."""
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    def gone(self, kind: str) -> None:
        """Wait until no process of a kind runs (zombies aside)."""
        deadline = monotonic() + 10
        while any(_runs(pid) for pid in self.pids(kind)):
            assert monotonic() < deadline, f"{kind} does not die"


def descendants(root: int) -> Iterator[tuple[int, list[str]]]:
    """Every process below one, with its command line."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    waiting = [root]
    while waiting:
        for pid in parents.get(waiting.pop(), ()):
            waiting.append(pid)
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
                if command:
                    yield pid, command.rstrip("\0").split("\0") if "\0" in command else command.split()


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@contextlib.asynccontextmanager
async def running_up(
    data_dir: Path, *options: str, environment: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[Up]:
    """Start `couponsvc up` on a free port and wait until it listens; stop it at the end."""
    log = (data_dir.parent / f"{data_dir.name}.log").open("wb")
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "couponsvc", "up", "--port", "0", "--data-dir", str(data_dir), *options],
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, **environment},
    )
    try:
        run_file = data_dir / "run.json"
        deadline = monotonic() + READY_S
        while not run_file.exists():
            assert process.poll() is None, Path(log.name).read_text()
            assert monotonic() < deadline, Path(log.name).read_text()
            await asyncio.sleep(0.05)
        credentials = json.loads((data_dir / "credentials.json").read_text())
        yield Up(process, data_dir, json.loads(run_file.read_text())["url"], credentials)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        finally:
            log.close()


@dataclass
class Rush:
    """One drop, more persons than units, and every answer that any of them ever got."""

    up: Up
    quantity: int
    persons: int
    drop_id: str = "rush"
    first_201: dict[str, bytes] = field(default_factory=dict)
    final: dict[str, str] = field(default_factory=dict)
    holder_of: dict[str, str] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    definition: dict[str, Any] = field(default_factory=dict)
    """As the operator put it."""

    def define(self) -> None:
        now = datetime.now(UTC)
        self.definition = {
            "program_id": "fault",
            "template_id": "dining-20",
            "quantity": self.quantity,
            "per_person_limit": 1,
            "opens_at": (now - timedelta(minutes=1)).isoformat(),
            "closes_at": (now + timedelta(hours=1)).isoformat(),
            "partners": ["bank-a"],
        }
        template = {"name": "T", "face_value_fen": 2000, "min_spend_fen": 6000, "valid_for_hours": 48}
        self.operate("put", "/v1/programs/fault", {"name": "Fault", "region": "370200"})
        self.operate("put", "/v1/programs/fault/templates/dining-20", template)
        self.operate("put", f"/v1/drops/{self.drop_id}", self.definition)
        self.wait_for_state("open")

    def operate(self, method: Literal["put", "post"], path: str, body: dict[str, Any]) -> None:
        """An operator's call, repeated while it is refused or not answered: a fault may not be over yet.

        Raises:
            Outdone: what was issued meanwhile stands against it, and will for ever.
        """
        give_up_at = monotonic() + READY_S
        while True:
            with self.up.operator() as operator:
                try:
                    getattr(operator, method)(path, body)
                except (ApiRefused, Unreachable) as error:
                    if isinstance(error, ApiRefused) and method == "put" and error.refusal.code == "conflict":
                        raise Outdone(str(error)) from error
                    if monotonic() > give_up_at:
                        raise
                    sleep(0.05)
                else:
                    return

    def wait_for_state(self, *states: str, timeout_s: float = 30.0) -> dict[str, Any]:
        deadline = monotonic() + timeout_s
        while True:
            figures: dict[str, Any] = {"state": "unreachable"}
            with contextlib.suppress(ApiRefused, Unreachable), self.up.operator() as operator:
                figures = operator.get(f"/v1/drops/{self.drop_id}")
            if figures["state"] in states and not figures.get("pending"):
                return figures
            assert monotonic() < deadline, f"the drop is still {figures} after {timeout_s} s"

    async def person(self, client: GrabClient, place: int) -> None:
        """One person: asks with one number until there is an answer, then once more."""
        person, number = f"canary-person-{place}", f"canary-{self.drop_id}-{place}"
        self.holder_of[number] = person
        while True:
            answer = await grab_until_answered(client, self.drop_id, person, number, retries=PATIENCE)
            self.note(number, answer.status, answer.body)
            if answer.outcome != "sold_out" or not answer.refusal.retryable:
                break
            await asyncio.sleep(0.2)  # a pending unit may come back
        self.final[number] = answer.outcome
        if answer.confirmed and place % 3 == 0:
            again = await grab_until_answered(client, self.drop_id, person, number, retries=PATIENCE)
            self.note(number, again.status, again.body)

    def note(self, number: str, status: int, body: bytes) -> None:
        self.statuses[status] += 1
        if status in (200, 201):
            known = self.first_201.setdefault(number, body)
            if known != body:
                self.wrong.append(f"{number} was answered with different bytes")

    async def run(self, clients: int = 3, connections: int = 64) -> None:
        """The whole crowd, through a few clients."""
        crowds = [
            GrabClient(self.up.url, self.up.key, connections_max_count=connections, timeout_s=5.0)
            for _ in range(clients)
        ]
        limit = asyncio.Semaphore(clients * connections)

        async def one(place: int) -> None:
            async with limit:
                await self.person(crowds[place % clients], place)

        try:
            await asyncio.gather(*(one(place) for place in range(self.persons)))
        finally:
            for crowd in crowds:
                crowd.close()

    async def judge(self) -> None:
        """Every promise, from the answers and the final state."""
        figures = await asyncio.to_thread(self.wait_for_state, "sold_out")
        assert self.wrong == []
        assert figures["issued"] == self.quantity, figures
        confirmed = {number for number, outcome in self.final.items() if outcome in {"issued", "repeated"}}
        refused = Counter(outcome for number, outcome in self.final.items() if number not in confirmed)
        assert set(refused) <= {"sold_out"}, refused
        assert len(confirmed) == self.quantity, (len(confirmed), refused)
        async with GrabClient(self.up.url, self.up.key) as client:
            numbers = sorted(confirmed)
            answers = await asyncio.gather(
                *(client.grab(self.drop_id, self.holder_of[number], number) for number in numbers)
            )
            for number, again in zip(numbers, answers, strict=True):
                assert (again.status, again.body) == (200, self.first_201[number])
        seqs = {answer.voucher.seq for answer in answers}
        codes = {answer.voucher.code for answer in answers}
        assert seqs == set(range(1, self.quantity + 1))
        assert len(codes) == self.quantity
        check = await asyncio.to_thread(run_check, self.up.data_dir)
        assert check.returncode == 0, check.stdout + check.stderr
        self.judge_logs()

    def judge_logs(self) -> None:
        """No log, the engines' included, names a person or a secret."""
        secrets = [secret for holder in self.up.credentials.values() for secret in holder.values()]
        planted = {"canary-", (self.up.data_dir / "master.key").read_text().strip(), *secrets}
        planted -= {self.up.credentials["partner"]["partner_id"], self.up.credentials["partner"]["key_id"]}
        logs = [self.up.data_dir.parent / f"{self.up.data_dir.name}.log", *self.up.data_dir.glob("*.log")]
        for path in logs:
            text = path.read_text("utf-8", "replace")
            told = [secret[:8] for secret in planted if secret in text]
            assert not told, f"{path.name} names {told}"


def run_check(data_dir: Path) -> "subprocess.CompletedProcess[str]":
    """`couponsvc check` on what `up` runs."""
    return subprocess.run(  # noqa: S603
        [sys.executable, "-m", "couponsvc", "check", "--data-dir", str(data_dir)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def copy_owned(source: Path, target: Path) -> None:
    """Replace `target` by a copy of a directory, owners included: an engine may run under another account."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
    for path in [source, *source.rglob("*")]:
        info = path.stat()
        shutil.chown(target / path.relative_to(source), info.st_uid, info.st_gid)
