"""The whole service in one event loop, on real servers, reached over real HTTP."""

import asyncio
import base64
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from time import monotonic
from typing import Any, Final

import httpx2
import pytest

from couponsvc.client import Answer, ApiClient, GrabClient
from couponsvc.ledger.drainer import Drainer
from couponsvc.processes.api import run_api
from couponsvc.programs.admission import create_development_credentials
from couponsvc.reconcile.check import check
from couponsvc.reconcile.reconciler import Reconciler
from couponsvc.settings import Settings
from couponsvc.support.postgres import open_pool
from couponsvc.support.redis_client import open_redis
from couponsvc.support.sealing import MasterKey
from couponsvc.support.signing import HmacKey

READY_S: Final = 20.0
_numbers = count(1)


async def wait_until(claim: Callable[[], Awaitable[bool]], what: str, timeout_s: float = READY_S) -> None:
    """Ask until `claim` holds; fails with `what` otherwise."""
    deadline = monotonic() + timeout_s
    while not await claim():
        assert monotonic() < deadline, f"still not so after {timeout_s} s: {what}"
        await asyncio.sleep(0.02)


@dataclass
class Service:
    """What a test may do: define drops, grab as bank-a, run or stop a process, check the books."""

    settings: Settings
    url: str
    credentials: dict[str, dict[str, str]]
    operator: ApiClient
    running: dict[str, tuple[asyncio.Event, asyncio.Task[None]]] = field(default_factory=dict)

    @property
    def key(self) -> HmacKey:
        partner = self.credentials["partner"]
        return HmacKey(partner["key_id"], base64.b64decode(partner["secret"]))

    @contextlib.contextmanager
    def grabs(self, connections_max_count: int = 64) -> Iterator[GrabClient]:
        client = GrabClient(self.url, self.key, connections_max_count=connections_max_count)
        try:
            yield client
        finally:
            client.close()

    async def operate(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One call as operator; raises ApiRefused."""

        if method == "GET":
            return await asyncio.to_thread(self.operator.get, path)
        if method == "PUT":
            return (await asyncio.to_thread(self.operator.put, path, body or {}))[1]
        return (await asyncio.to_thread(self.operator.post, path, body))[1]

    async def grab_with_token(self, drop_id: str, person_token: str, out_request_no: str) -> str:
        """The outcome of a grab that is not signed, so that no clock of ours is asked."""
        async with httpx2.AsyncClient(base_url=self.url, trust_env=False) as http:
            response = await http.post(
                f"/v1/drops/{drop_id}/grabs",
                json={"person_token": person_token, "out_request_no": out_request_no},
                headers={"authorization": f"Bearer {self.credentials['partner']['token']}"},
            )
        return Answer(response.status_code, response.content).outcome

    async def drop(
        self,
        quantity: int,
        *,
        limit: int = 1,
        opens_in_s: float = -60,
        closes_in_s: float = 3600,
        wait: bool = True,
        partners: Sequence[str] = ("bank-a",),
    ) -> str:
        """A new drop of program `test`; waits until the gate has it."""
        drop_id = f"drop-{next(_numbers)}"
        now = datetime.now(UTC)
        await self.operate(
            "PUT",
            f"/v1/drops/{drop_id}",
            {
                "program_id": "test",
                "template_id": "dining-20",
                "quantity": quantity,
                "per_person_limit": limit,
                "opens_at": (now + timedelta(seconds=opens_in_s)).isoformat(),
                "closes_at": (now + timedelta(seconds=closes_in_s)).isoformat(),
                "partners": list(partners),
            },
        )
        if wait:
            expected = "open" if opens_in_s <= 0 else "scheduled"

            async def loaded() -> bool:
                return bool((await self.operate("GET", f"/v1/drops/{drop_id}"))["state"] == expected)

            await wait_until(loaded, f"{drop_id} is {expected}")
        return drop_id

    async def define_program(self) -> None:
        """Program `test` with the template `dining-20`."""
        await self.operate("PUT", "/v1/programs/test", {"name": "Test", "region": "370200"})
        await self.operate(
            "PUT",
            "/v1/programs/test/templates/dining-20",
            {"name": "20 off 60", "face_value_fen": 2000, "min_spend_fen": 6000, "valid_for_hours": 48},
        )

    async def settled(self, drop_id: str) -> dict[str, Any]:
        """The drop's figures once nothing is pending."""
        figures: dict[str, Any] = {}

        async def nothing_pending() -> bool:
            figures.update(await self.operate("GET", f"/v1/drops/{drop_id}"))
            return (figures["pending"], figures["state"] == "rebuilding") == (0, False)

        await wait_until(nothing_pending, f"nothing of {drop_id} is pending")
        return figures

    async def no_drift(self) -> None:
        """What `couponsvc check` checks, of every drop."""
        pool = await open_pool(self.settings.postgres_dsn.get_secret_value())
        redis = open_redis(self.settings.redis_url)
        try:
            wrong = [str(found) for found in await check(pool, redis, None) if found.drift]
            assert not wrong, wrong
        finally:
            await redis.aclose()
            await pool.close()

    async def start(self, name: str) -> None:
        """Run a process of the service: `drain`, `drain2`, `reconcile` or `api`."""
        stop = asyncio.Event()
        self.running[name] = (stop, asyncio.create_task(self._run(name, stop), name=name))

    async def _run(self, name: str, stop: asyncio.Event) -> None:
        if name.startswith("api"):
            await run_api(self.settings, stop)
            return
        stage = await (Drainer if name.startswith("drain") else Reconciler).open(self.settings)
        try:
            await stage.run(stop)
        finally:
            await stage.close()

    async def stop(self, name: str) -> None:
        stop, task = self.running.pop(name)
        stop.set()
        await asyncio.wait_for(task, READY_S)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    """A running service with one API process, one drainer, one reconciler."""
    port = free_port()
    settings = settings.model_copy(update={"port": port})
    pool = await open_pool(settings.postgres_dsn.get_secret_value())
    credentials = await create_development_credentials(
        pool, MasterKey.from_base64(settings.master_key.get_secret_value())
    )
    await pool.close()
    assert credentials is not None
    url = f"http://127.0.0.1:{port}"
    operator = ApiClient(url, credentials["operator"]["token"])
    running = Service(settings, url, credentials, operator)
    for name in ("drain", "reconcile", "api"):
        await running.start(name)

    async def ready() -> bool:
        with contextlib.suppress(Exception):
            await running.operate("GET", "/readyz")
            return True
        return False

    await wait_until(ready, "the service is ready")
    await running.define_program()
    yield running
    for name in list(running.running):
        await running.stop(name)
    operator.close()
