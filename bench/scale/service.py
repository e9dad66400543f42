"""One running `couponsvc up` of the bench: its drops, its signed requests, its engines."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from math import inf
from random import Random
from typing import Final, Self

import asyncpg
import httpx2
from redis.asyncio import Redis

from couponsvc.client import Answer, GrabClient
from couponsvc.demo.stack import Stack
from couponsvc.processes.run_file import MASTER_KEY_FILE_NAME
from couponsvc.programs.definitions import DropDefinition, define_program, define_template
from couponsvc.programs.operations import Operator, define_drop
from couponsvc.support.postgres import open_pool
from couponsvc.support.redis_client import open_redis
from couponsvc.support.sealing import MasterKey
from couponsvc.values import keys
from couponsvc.values.drop import VoucherTerms

PROGRAM_ID: Final = "qingdao-2022"
TEMPLATE_ID: Final = "dining-20"
TERMS: Final = VoucherTerms(2_000, 6_000, 48 * 3_600_000)
ACTOR: Final = "bench"
SHARD: Final = 0
PATIENCE_S: Final = 300.0
"""For drops to be loaded and processes to come to rest: millions of holders take half a minute."""
QUICK_LOOK_S: Final = 6.0
"""Looks at all drops that follow each other as soon found nothing to do; proving millions takes longer."""
WAKE_S: Final = 1.0
POLL_S: Final = 0.05
HTTP_TIMEOUT_S: Final = 30.0
LAST_LOOK: Final = "couponsvc_reconcile_last_look_timestamp_seconds"


class Service:
    """A service on its own engines; an asynchronous context made by `running`."""

    def __init__(self, stack: Stack) -> None:
        self._stack: Final = stack
        self.url: Final = stack.run.url
        self.dsn: Final = stack.run.postgres_dsn
        self.root_pid: Final = stack.pid
        self.partner_id: Final = stack.credentials.partner_id
        key_text = (stack.data_dir / MASTER_KEY_FILE_NAME).read_text("ascii")
        self.master_key: Final = MasterKey.from_base64(key_text.strip())
        self.redis: Final[Redis] = open_redis(stack.run.redis_url, max_connections=2)
        self._http: Final = httpx2.AsyncClient(base_url=self.url, trust_env=False, timeout=HTTP_TIMEOUT_S)
        self._signer: Final = GrabClient(self.url, stack.credentials.signing_key())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._signer.close()
        await self._http.aclose()
        await self.redis.aclose()

    # --- drops --------------------------------------------------------------------------------
    async def define(self, drops: Iterable[tuple[str, int, bool]]) -> None:
        """Define drops of the bench's program, `(drop_id, quantity, open now)`, and wait for the open ones.

        Raises:
            TimeoutError: one of them does not open.
        """
        now = datetime.now(UTC)
        windows = {
            True: (now - timedelta(minutes=1), now + timedelta(hours=2)),
            False: (now + timedelta(days=7), now + timedelta(days=7, hours=2)),
        }
        pool = await open_pool(self.dsn, max_size=1)
        operator = Operator(pool, self.redis, SHARD, ACTOR)
        wanted = list(drops)
        try:
            await define_program(
                pool, self.master_key, ACTOR, program_id=PROGRAM_ID, name=PROGRAM_ID, region=""
            )
            await define_template(
                pool, ACTOR, program_id=PROGRAM_ID, template_id=TEMPLATE_ID, name="60-20", terms=TERMS
            )
            for drop_id, quantity, is_open in wanted:
                opens_at, closes_at = windows[is_open]
                await define_drop(
                    operator,
                    DropDefinition(
                        drop_id, PROGRAM_ID, TEMPLATE_ID, quantity, 1, opens_at, closes_at,
                        frozenset({self.partner_id}),
                    ),
                )  # fmt: skip
            await self._until_known(pool, [drop_id for drop_id, _, _ in wanted])
        finally:
            await pool.close()

    async def _until_known(self, pool: "asyncpg.Pool[asyncpg.Record]", drop_ids: Sequence[str]) -> None:
        """Wait until Redis has every drop under its epoch."""
        rows = await pool.fetch("SELECT drop_no, epoch FROM drops WHERE drop_id = ANY ($1)", list(drop_ids))
        names = [keys.epoch_field(row["drop_no"]) for row in rows]
        epochs = [row["epoch"] for row in rows]

        async def published() -> bool:
            return [int(e or 0) for e in await self.redis.hmget(keys.shard_key(SHARD), names)] == epochs

        await _until(published)

    async def issued(self, drop_ids: Sequence[str]) -> int:
        """Vouchers that Postgres has issued of these drops."""
        connection = await asyncpg.connect(self.dsn)
        try:
            count = await connection.fetchval(
                "SELECT coalesce(sum(issued), 0)::int FROM drops WHERE drop_id = ANY ($1)", list(drop_ids)
            )
        finally:
            await connection.close()
        return int(count)

    async def settled(self) -> None:
        """Wait until no grant is pending any more.

        Raises:
            TimeoutError: grants stay on the stream.
        """
        await _until(self._drained)

    async def at_rest(self) -> None:
        """Wait until the reconciler has nothing left to load or to prove, and Redis none of it to rewrite.

        Raises:
            TimeoutError: they stay busy.
        """
        last, gap_s = await self._last_look(), inf
        async with asyncio.timeout(PATIENCE_S):
            while gap_s > QUICK_LOOK_S or await self._rewriting():
                await asyncio.sleep(POLL_S)
                look = await self._last_look()
                if look > last > 0:
                    gap_s = look - last
                last = look

    async def awake(self) -> None:
        """Wait until the service is ready again after a pause, and overdue timers have fired.

        Raises:
            TimeoutError: it does not become ready.
        """
        await _until(self._ready)
        await asyncio.sleep(WAKE_S)

    async def _drained(self) -> bool:
        return not int(await self.redis.hget(keys.shard_key(SHARD), keys.BACKLOG_FIELD) or 0)

    async def _ready(self) -> bool:
        return (await self._http.get("/readyz")).status_code == HTTPStatus.OK

    async def _last_look(self) -> float:
        """When the reconciler ended a look at all drops, in Unix time; 0 before the first."""
        text = (await self._http.get("/metrics")).text
        found = re.search(rf"^{LAST_LOOK}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    async def _rewriting(self) -> bool:
        info = await self.redis.info("persistence")
        return bool(info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"])

    # --- requests -----------------------------------------------------------------------------
    def grabs(self, drop_ids: Sequence[str], count: int, seed: str) -> Iterator[bytes]:
        """Signed grabs, the drops in turn, each by a new person under a random number (like a UUID)."""
        random = Random(seed)  # noqa: S311 - reproducible, and nobody's secret
        request = self._signer.grab_request
        for place in range(count):
            drawn = random.randbytes(24).hex()
            yield request(drop_ids[place % len(drop_ids)], f"p-{drawn[:16]}", drawn[16:])

    async def grab(self, drop_id: str, person_token: str, out_request_no: str) -> Answer:
        """Send one grab beside the load."""
        return await self._signer.grab(drop_id, person_token, out_request_no)


async def _until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again.

    Raises:
        TimeoutError: it does not come to hold.
    """
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if await holds():
                return
            await asyncio.sleep(POLL_S)


@contextmanager
def running(workers: int = 1) -> Iterator[Service]:
    """Start a service on fresh engines; stopped and removed at the end."""
    with Stack(None, workers) as stack:
        yield Service(stack)
