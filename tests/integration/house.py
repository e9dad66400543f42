"""The API on real engines, called in this process; grants come from the real gate and drainer."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import asyncpg
import httpx2
import structlog
from redis.asyncio import Redis

from couponsvc.api.app import create_app
from couponsvc.api.auth import Authenticator
from couponsvc.api.services import Services
from couponsvc.gate.grabbing import SCRIPT, grab_command
from couponsvc.ledger.drainer import Drainer
from couponsvc.ledger.drops import load_drops, mark_drops
from couponsvc.programs import admission
from couponsvc.programs.admission import CredentialRequest
from couponsvc.programs.catalog import DropCatalog
from couponsvc.programs.definitions import find_drop
from couponsvc.settings import Settings
from couponsvc.support.sealing import MasterKey
from couponsvc.values import wire
from couponsvc.values.drop import Drop
from couponsvc.values.grab import Grab, holder_of

Answer = httpx2.Response
HOUR = timedelta(hours=1)


@dataclass
class House:
    """One API application, its clients by credential, and the stages behind it."""

    settings: Settings
    pool: "asyncpg.Pool[asyncpg.Record]"
    redis: Redis
    services: Services
    app: Any
    tokens: dict[str, str] = field(default_factory=dict)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, settings: Settings, pool: "asyncpg.Pool[asyncpg.Record]", redis: Redis
    ) -> AsyncIterator[Self]:
        """Admit bank-a, bank-b, an operator and an auditor; bless the server; serve."""
        master_key = MasterKey.from_base64(settings.master_key.get_secret_value())
        authenticator = Authenticator(pool, master_key)

        async def load(drop_ids: Any) -> Any:
            return await load_drops(pool, drop_ids)

        async def mark() -> Any:
            return await mark_drops(pool)

        services = Services(
            settings=settings,
            pool=pool,
            redis=redis,
            authenticator=authenticator,
            catalog=DropCatalog(load, mark, settings.shard),
            gate_closed_because=lambda: None,
        )
        house = cls(settings, pool, redis, services, create_app(services))
        for partner_id in ("bank-a", "bank-b"):
            await admission.create_partner(pool, "test", partner_id, partner_id)
            request = CredentialRequest("partner", "bearer", partner_id)
            house.tokens[partner_id] = await house._token(master_key, request)
        for holder in ("operator", "auditor"):
            house.tokens[holder] = await house._token(master_key, CredentialRequest(holder, "bearer"))
        await authenticator.load()
        await house.bless()
        # Drawn in colour with every local variable, one traceback takes ten seconds.
        structlog.configure(
            processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()]
        )
        yield house
        structlog.reset_defaults()

    async def _token(self, master_key: MasterKey, request: CredentialRequest) -> str:
        made = await admission.create_key(self.pool, master_key, "test", request)
        assert made.token is not None
        return made.token

    async def bless(self) -> None:
        """Say that this Redis was checked, as the reconciler would."""
        info = {**await self.redis.info("server"), **await self.redis.info("replication")}
        await self.pool.execute(
            "INSERT INTO blessings (shard, run_id, replication_id) VALUES (0, $1, $2)"
            " ON CONFLICT (shard) DO UPDATE SET run_id = $1, replication_id = $2",
            info["run_id"],
            info["master_replid"],
        )

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        by: str | None = "operator",
        headers: Mapping[str, str] | None = None,
        content: Any = None,
    ) -> Answer:
        """One request as the holder of a credential; `by` None: without one."""
        sent = dict(headers or {})
        if by is not None:
            sent["authorization"] = f"Bearer {self.tokens[by]}"
        transport = httpx2.ASGITransport(app=self.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            if content is not None:
                return await client.request(method, path, content=content, headers=sent)
            return await client.request(method, path, json=body, headers=sent)

    async def program(self) -> None:
        """Program `test` with template `dining-20`."""
        await self.call("PUT", "/v1/programs/test", {"name": "Test"})
        await self.call("PUT", "/v1/programs/test/templates/dining-20", template())

    async def drop(self, drop_id: str = "wed", **changes: Any) -> dict[str, Any]:
        """Define a drop that is open now; returns the answer's body."""
        await self.program()
        answer = await self.call("PUT", f"/v1/drops/{drop_id}", drop(**changes))
        assert answer.status_code in {200, 201}, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def standing(self, drop_id: str) -> Drop:
        """The drop as Postgres has it."""
        found = await find_drop(self.pool, drop_id)
        assert found is not None
        return found.drop

    async def grant(self, drop_id: str, *people: str, partner: str = "bank-a", number: str = "") -> str:
        """Grab at the real gate; returns its outcome letters. Person `p1` uses number `n-p1`."""
        drop_row = await self.standing(drop_id)
        partner_no = await self.pool.fetchval(
            "SELECT partner_no FROM partners WHERE partner_id = $1", partner
        )
        grabs = [
            wire.grab_row(
                1, Grab(drop_row.drop_no, holder_of(partner_no, person), number or f"n-{person}", "", "")
            )
            for person in people
        ]
        keys, arguments = grab_command(
            0, wire.encode_origin("test", 1), [(drop_row.drop_no, drop_row.epoch)], grabs, 1_000
        )
        reply = await SCRIPT.run(self.redis, keys, arguments)
        letters: str = reply[0].decode()
        return letters

    async def drain(self) -> None:
        """Commit what is granted."""
        drainer = await Drainer.open(self.settings)
        try:
            await drainer.run_once()
        finally:
            await drainer.close()

    async def issue(self, drop_id: str, *people: str, partner: str = "bank-a") -> None:
        """Grant and commit."""
        letters = await self.grant(drop_id, *people, partner=partner)
        assert letters == "G" * len(people), letters
        await self.drain()


def template(**changes: Any) -> dict[str, Any]:
    return {
        "name": "20 off 60",
        "face_value_fen": 2000,
        "min_spend_fen": 6000,
        "valid_for_hours": 48,
        **changes,
    }


def drop(**changes: Any) -> dict[str, Any]:
    """A drop's body; moments are given as offsets from now."""
    now = datetime.now(UTC)
    body = {
        "program_id": "test",
        "template_id": "dining-20",
        "quantity": 10,
        "per_person_limit": 1,
        "opens_at": -HOUR,
        "closes_at": HOUR,
        "partners": ["bank-a"],
        **changes,
    }
    for name in ("opens_at", "closes_at"):
        if isinstance(body[name], timedelta):
            body[name] = (now + body[name]).isoformat()
    return body


def code_of(answer: Answer) -> str:
    """The problem's code, after checking that the answer is a problem as the contract says."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    problem = answer.json()
    assert set(problem) >= {"type", "title", "status", "detail", "code", "retryable"}
    assert problem["status"] == answer.status_code
    assert answer.headers["x-request-id"]
    if answer.status_code in {429, 503}:
        assert int(answer.headers["retry-after"]) >= 1
    code: str = problem["code"]
    return code
