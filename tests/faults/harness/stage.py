"""What a short schedule needs: drops of its own, persons who ask, faults that are written down.

An act is made for a few planted bugs: it asks for a few dozen vouchers and plants the one fault that
shows what is missing. `playing` sets the stage and judges.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import asyncpg

from couponsvc.client import Answer, ApiClient, ApiRefused, Unreachable
from couponsvc.support.kill_points import HIT_SUFFIX
from couponsvc.support.redis_client import open_redis
from couponsvc.values import keys
from tests.faults.harness.asking import Asker, gone_for_good, settled
from tests.faults.harness.deployment import Deployment
from tests.faults.harness.final import SHARD
from tests.faults.harness.history import FaultNote, History, Operation
from tests.faults.harness.numbers import Number

PATIENCE_S: Final = 15.0
"""For whatever a play waits for; what a planted bug keeps from happening is not waited for longer."""
AGAIN_PATIENCE_S: Final = 1.0
"""By then everything is committed; what waits for longer waits for ever."""
POLL_S: Final = 0.05
UNAVAILABLE: Final = 503
CROWD_COUNT: Final = 4
"""Who asks at the same time in a closing demand."""
ROUNDS_MAX_COUNT: Final = 8
"""Of a closing demand: several times what an act has units for."""
PROGRAM: Final = "planted"
PARTNER: Final = "bank-a"
OTHER_PARTNER: Final = "wallet-b"
RECONCILERS: Final = "reconcile"


class Stage:
    """One play on a deployment."""

    def __init__(self, deployment: Deployment, prefix: str) -> None:
        """Set it; close it afterwards. `prefix` is what no other play's names begin with."""
        self.deployment: Final = deployment
        self.history: Final = History()
        self.asker: Final = Asker(deployment.url, deployment.keys, self.history)
        self.quantities: Final[dict[str, int]] = {}
        """By drop_id, of every drop of the play."""
        self._prefix: Final = prefix
        self._persons: Final = itertools.count(1)
        self._numbers: Final[list[Number]] = []

    def close(self) -> None:
        """Close the persons' connections."""
        self.asker.close()

    # --- operators --------------------------------------------------------------------------------
    async def define(self, role: str, quantity: int, *, limit: int = 1, opens_in_s: float = -60.0) -> str:
        """Define a drop and wait until it is open (or scheduled); its drop_id."""
        drop_id = f"{self._prefix}-{role}"
        now = datetime.now(UTC)
        body = {
            "program_id": PROGRAM,
            "template_id": "dining-20",
            "quantity": quantity,
            "per_person_limit": limit,
            "opens_at": (now + timedelta(seconds=opens_in_s)).isoformat(),
            "closes_at": (now + timedelta(hours=1)).isoformat(),
            "partners": [PARTNER, OTHER_PARTNER],
        }
        await self._operate("PUT", f"/v1/programs/{PROGRAM}", {"name": "Planted", "region": "370200"})
        template = {"name": "T", "face_value_fen": 2000, "min_spend_fen": 6000, "valid_for_hours": 48}
        await self._operate("PUT", f"/v1/programs/{PROGRAM}/templates/dining-20", template)
        with self._noting("define", drop_id, quantity):
            await self._operate("PUT", f"/v1/drops/{drop_id}", body)
        self.quantities[drop_id] = quantity
        await self.until_shown(drop_id, "open" if opens_in_s <= 0 else "scheduled")
        return drop_id

    async def restock(self, drop_id: str, add: int) -> None:
        """Add units."""
        quantity = self.quantities[drop_id]
        with self._noting("restock", drop_id, quantity + add):
            body = {"current_quantity": quantity, "add": add}
            await self._operate("POST", f"/v1/drops/{drop_id}/restock", body)
        self.quantities[drop_id] = quantity + add

    async def until_shown(self, drop_id: str, *states: str) -> None:
        """Wait until the API shows one of these states; patience is all there is."""

        async def shown() -> bool:
            try:
                return (await self._operate("GET", f"/v1/drops/{drop_id}"))["state"] in states
            except (ApiRefused, Unreachable):
                return False

        await self.until(shown)

    async def _operate(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask as operator; a 503 changed nothing, so it is asked again."""
        give_up_at = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await self._operate_once(method, path, body)
            except ApiRefused as refused:
                if refused.status != UNAVAILABLE or time.monotonic() > give_up_at:
                    raise
            await asyncio.sleep(POLL_S)

    async def _operate_once(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        def call() -> dict[str, Any]:
            with ApiClient(self.deployment.url, self.deployment.operator_token) as api:
                if body is None:
                    return api.get(path)
                return (api.put(path, body) if method == "PUT" else api.post(path, body))[1]

        return await asyncio.to_thread(call)

    @contextmanager
    def _noting(self, what: str, drop_id: str, quantity: int) -> Iterator[None]:
        began_ns = time.monotonic_ns()
        yield
        self.history.operations.append(
            Operation(what, drop_id, began_ns, time.monotonic_ns(), quantity, ok=True)
        )

    # --- persons ----------------------------------------------------------------------------------
    def number(self, drop_id: str, person: str = "", *, number: str = "", partner: str = PARTNER) -> Number:
        """A number of a person, both new where they are not given."""
        place = next(self._persons)
        new = Number(partner, drop_id, person or f"p-{place}", number or f"{self._prefix}-n-{place}")
        self._numbers.append(new)
        return new

    async def ask(self, number: Number, *, wait: bool = True) -> Answer:
        """Grab once; without `wait` nobody waits for the commit."""
        return await self.asker.grab(0, number, respond_async=not wait)

    async def ask_all(self, numbers: Iterable[Number], *, wait: bool = True) -> list[Answer]:
        """Grab at the same time."""
        return await asyncio.gather(*(self.ask(number, wait=wait) for number in numbers))

    def fresh(self, drop_id: str, count: int) -> list[Number]:
        """Numbers of new persons."""
        return [self.number(drop_id) for _ in range(count)]

    async def ask_in_one_batch(self, numbers: Iterable[Number], *, wait: bool = True) -> list[Answer]:
        """Grabs that an API process finds all at once when it wakes up: one decision."""
        api = self.deployment.members("api")[0]
        self.deployment.pause(api)
        asking = asyncio.ensure_future(self.ask_all(numbers, wait=wait))
        await asyncio.sleep(0.2)  # on loopback everything sent is there
        self.deployment.resume(api)
        return await asking

    async def sell_out(self, drop_id: str) -> None:
        """New persons ask until the drop is sold out for good, or patience is over."""
        for _ in range(ROUNDS_MAX_COUNT):
            if any(gone_for_good(answer) for answer in await self.ask_all(self.fresh(drop_id, CROWD_COUNT))):
                return
            await asyncio.sleep(POLL_S)

    async def ask_everything_again(self) -> None:
        """Every number of the play, until it is settled or patience is over."""
        waiting = list(dict.fromkeys(self._numbers))
        give_up_at = time.monotonic() + AGAIN_PATIENCE_S
        while waiting:
            answers = await self.ask_all(waiting)
            waiting = [n for n, answer in zip(waiting, answers, strict=True) if not settled(answer)]
            if time.monotonic() > give_up_at:
                return
            await asyncio.sleep(POLL_S)

    # --- faults -----------------------------------------------------------------------------------
    @contextmanager
    def fault(self, what: str) -> Iterator[None]:
        """Write down that something is broken, from before it is until it is mended."""
        began_ns = time.monotonic_ns()
        try:
            yield
        finally:
            self.history.faults.append(FaultNote(what, began_ns, time.monotonic_ns()))

    @contextmanager
    def paused(self, kind: str) -> Iterator[None]:
        """Processes of a kind are stopped meanwhile."""
        for name in self.deployment.members(kind):
            self.deployment.pause(name)
        try:
            yield
        finally:
            self.resume(kind)

    def pause(self, kind: str) -> None:
        """Stop the processes of a kind until they are resumed, at the end of the play at the latest."""
        for name in self.deployment.members(kind):
            self.deployment.pause(name)

    def resume(self, kind: str) -> None:
        """Let them go on, whoever stopped them."""
        for name in self.deployment.members(kind):
            self.deployment.resume(name)

    @asynccontextmanager
    async def order(self, point: str, what: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Arm a kill point; what is yielded waits until it was hit."""
        path = self.deployment.kill_points_dir / point
        hit = path.with_name(path.name + HIT_SUFFIX)
        path.write_text(what)

        async def until_hit() -> None:
            async def was_hit() -> bool:
                return hit.exists()

            await self.until(was_hit)
            assert hit.exists(), f"{point} was not reached"

        try:
            yield until_hit
        finally:
            for left in (path, hit):
                left.unlink(missing_ok=True)

    # --- looking ----------------------------------------------------------------------------------
    async def until(self, holds: Callable[[], Awaitable[bool]], patience_s: float = PATIENCE_S) -> bool:
        """Wait until something holds; whether it does. A planted bug may keep it from ever holding."""
        give_up_at = time.monotonic() + patience_s
        while not await holds():
            if time.monotonic() > give_up_at:
                return False
            await asyncio.sleep(POLL_S)
        return True

    async def until_drained(self, patience_s: float = 3.0) -> None:
        """Wait until the stream is empty, for a while."""
        redis = open_redis(self.deployment.redis_url, max_connections=1)

        async def empty() -> bool:
            return not await redis.xlen(keys.grants_key(SHARD))

        try:
            await self.until(empty, patience_s)
        finally:
            await redis.aclose()

    async def until_epoch(self, drop_id: str, epoch: int) -> None:
        """Wait until a drop is open under this epoch or a newer one, for a while."""
        ((drop_no,),) = await self.sql("SELECT drop_no FROM drops WHERE drop_id = $1", drop_id)
        redis = open_redis(self.deployment.redis_url, max_connections=1)

        async def published() -> bool:
            return int(await redis.hget(keys.shard_key(SHARD), keys.epoch_field(drop_no)) or 0) >= epoch

        try:
            await self.until(published)
        finally:
            await redis.aclose()

    def stopped_first(self, kind: str) -> tuple[str, str]:
        """Two processes of a kind: the one that is stopped, and the other."""
        first, second = self.deployment.members(kind)
        return (first, second) if _is_stopped(self.deployment.pid(first)) else (second, first)

    async def end_advisory_locks(self) -> None:
        """End the sessions that lead, as Postgres does once nothing is heard of them."""
        await self.sql("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")

    async def sql(self, statement: str, *arguments: object) -> list[Any]:
        """Run one statement on the ledger, past all proxies."""
        connection = await asyncpg.connect(self.deployment.postgres_dsn)
        try:
            return await connection.fetch(statement, *arguments)
        finally:
            await connection.close()


def _is_stopped(pid: int | None) -> bool:
    return pid is not None and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


Act = Callable[[Stage], Awaitable[None]]
