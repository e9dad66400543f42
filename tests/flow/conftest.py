"""The whole service in one event loop, on real servers, reached over real HTTP."""

import asyncio
import base64
import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from time import monotonic
from typing import Any, Final

import asyncpg
import httpx2
import pytest

from couponsvc.client import Answer, ApiClient, GrabClient
from couponsvc.ledger.drainer import Drainer
from couponsvc.outbox.relay import Relay
from couponsvc.processes.api import run_api
from couponsvc.programs import admission
from couponsvc.programs.admission import CredentialRequest, Kind, NewCredential
from couponsvc.programs.development_credentials import create_development_credentials
from couponsvc.reconcile.check import check
from couponsvc.reconcile.reconciler import Reconciler
from couponsvc.settings import Settings
from couponsvc.support.postgres import open_pool
from couponsvc.support.redis_client import open_redis
from couponsvc.support.sealing import MasterKey
from couponsvc.support.signing import HmacKey
from tests.conftest import emptied, migrated, no_task_left, settings_for
from tests.servers import PostgresServer, RedisServer

READY_S: Final = 20.0
STAGES: Final[dict[str, type[Drainer | Reconciler | Relay]]] = {
    "drain": Drainer,
    "drain2": Drainer,
    "reconcile": Reconciler,
    "relay": Relay,
}
PROCESSES: Final = ("drain", "reconcile", "api")
"""What runs at the beginning of each test."""
_numbers = count(1)


async def wait_until(claim: Callable[[], Awaitable[bool]], what: str, timeout_s: float = READY_S) -> None:
    """Ask until `claim` holds; fails with `what` otherwise."""
    deadline = monotonic() + timeout_s
    while not await claim():
        assert monotonic() < deadline, f"still not so after {timeout_s} s: {what}"
        await asyncio.sleep(0.02)


@dataclass
class Service:
    """What a test may do: define drops, grab as its partner, run or stop a process, check the books."""

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
        async with httpx2.AsyncClient(base_url=self.url, trust_env=False, verify=False) as http:
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
        partners: Sequence[str] | None = None,
    ) -> str:
        """A new drop of program `test`, of the test's partner; waits until the gate has it."""
        drop_id = f"drop-{next(_numbers)}"
        now = datetime.now(UTC)
        if partners is None:
            partners = [self.credentials["partner"]["partner_id"]]
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
                "partners": [self.credentials["partner"]["partner_id"]]
                if partners is None
                else list(partners),
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
        """Run a process of the service: `drain`, `drain2`, `reconcile`, `relay` or `api`."""
        stop = asyncio.Event()
        self.running[name] = (stop, asyncio.create_task(self._run(name, stop), name=name))

    async def _run(self, name: str, stop: asyncio.Event) -> None:
        if name.startswith("api"):
            await run_api(self.settings, stop)
            return
        stage = await STAGES[name].open(self.settings)
        try:
            await stage.run(stop)
        finally:
            await stage.close()

    async def stop(self, name: str) -> None:
        stop, task = self.running.pop(name)
        stop.set()
        await asyncio.wait_for(task, READY_S)

    async def run_exactly(self, names: Collection[str]) -> None:
        """Start what does not run, stop what should not, and wait until the service is ready."""
        for name in [name for name in names if name not in self.running]:
            await self.start(name)
        for name in [name for name in self.running if name not in names]:
            await self.stop(name)
        if "api" in names:
            await wait_until(self.ready, "the service is ready")

    async def ready(self) -> bool:
        with contextlib.suppress(Exception):
            await self.operate("GET", "/readyz")
            return True
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Service]:
    """A running service with one API process, one drainer, one reconciler."""
    port = free_port()
    settings = settings.model_copy(update={"port": port})
    pool = await open_pool(settings.postgres_dsn.get_secret_value())
    credentials = await create_development_credentials(pool, master_key_of(settings))
    await pool.close()
    assert credentials is not None
    url = f"http://127.0.0.1:{port}"
    operator = ApiClient(url, credentials["operator"]["token"])
    running = Service(settings, url, credentials, operator)
    await running.run_exactly(PROCESSES)
    await running.define_program()
    yield running
    await running.run_exactly(())
    operator.close()


@pytest.fixture(scope="module")
def changes() -> dict[str, Any]:
    """Settings that differ for the services of a file."""
    return {}


@pytest.fixture(scope="module")
async def shared_service(
    redis_server: RedisServer, postgres_server: PostgresServer, changes: dict[str, Any]
) -> AsyncIterator[Service]:
    """The service of all tests of a file, which takes a second to start; see `service`."""
    async with no_task_left(), migrated(postgres_server) as database:
        with emptied(redis_server) as redis_url:
            settings = settings_for(redis_url, database).model_copy(update=changes)
            async with serving(settings) as running:
                yield running


@pytest.fixture
async def service(shared_service: Service) -> AsyncIterator[Service]:
    """A running service, and a partner that only this test knows: its numbers and drops are its own."""
    partner_id = f"bank-{next(_numbers)}"
    pool = await open_pool(shared_service.settings.postgres_dsn.get_secret_value())
    partner = await admit(pool, shared_service.settings, partner_id)
    await pool.close()
    yield dataclasses.replace(shared_service, credentials={**shared_service.credentials, "partner": partner})
    await shared_service.run_exactly(PROCESSES)


async def admit(pool: "asyncpg.Pool[asyncpg.Record]", settings: Settings, partner_id: str) -> dict[str, str]:
    """A new partner's entry of credentials.json."""
    await admission.create_partner(pool, "test", partner_id, partner_id)

    async def key(kind: Kind) -> NewCredential:
        request = CredentialRequest("partner", kind, partner_id)
        return await admission.create_key(pool, master_key_of(settings), "test", request)

    signing, bearer = await key("hmac-sha256"), await key("bearer")
    return {
        "partner_id": partner_id,
        "key_id": signing.key_id,
        "secret": signing.secret or "",
        "token": bearer.token or "",
    }


def master_key_of(settings: Settings) -> MasterKey:
    return MasterKey.from_base64(settings.master_key.get_secret_value())


@pytest.fixture(autouse=True)
async def _no_task_left_behind(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """The tasks of a service come and go over the tests of its file; `shared_service` checks at the end."""
    if "shared_service" in request.fixturenames:
        yield
        return
    async with no_task_left():
        yield
