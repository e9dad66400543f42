"""A ledger with drops, a gate in front of it, and the checks every ledger test ends with."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from redis.asyncio import Redis

from couponsvc.gate.grabbing import OUTCOME_OF, SCRIPT, grab_command
from couponsvc.gate.loading import publish_new_drop
from couponsvc.ledger import codes
from couponsvc.ledger.drops import load_drops
from couponsvc.settings import Settings
from couponsvc.support.sealing import MasterKey
from couponsvc.values import keys, wire
from couponsvc.values.drop import Drop
from couponsvc.values.grab import Grab, holder_of
from couponsvc.values.outcome import Outcome
from couponsvc.values.wire import Confirmation, Entry, Grant, Origin

SHARD = 0
CODE_KEY = bytes(range(100, 132))
ORIGIN = "origin"

_INSERT_PROGRAM = """
INSERT INTO programs (program_id, name, region, sealed_code_key) VALUES ('pp', 'P', '', $1)
ON CONFLICT (program_id) DO UPDATE SET name = 'P' RETURNING program_no
"""
_INSERT_TEMPLATE = """
INSERT INTO templates (program_no, template_id, name, face_value_fen, min_spend_fen, valid_for_ms)
VALUES ($1, 'tt', 'T', 2000, 6000, 3600000) ON CONFLICT DO NOTHING
"""
_INSERT_DROP = """
INSERT INTO drops (drop_id, program_no, template_id, quantity, per_person_limit, opens_at, closes_at,
                   face_value_fen, min_spend_fen, valid_for_ms)
VALUES ($1, $2, 'tt', $3, $4, now() - interval '1 hour', now() + interval '1 hour', 2000, 6000, 3600000)
RETURNING drop_no
"""
_TOLD = """
SELECT
  coalesce((SELECT told_seq FROM drop_tellings WHERE drop_no = $1), 0) AS told_seq,
  coalesce((SELECT sum(voucher_count) FROM events WHERE drop_no = $1), 0) AS vouchers_told,
  (SELECT count(*) FROM outbox WHERE drop_no = $1 AND type = 'drop.sold_out') AS sold_out_waiting,
  (SELECT count(*) FROM events WHERE drop_no = $1 AND type = 'drop.sold_out') AS sold_out_told,
  (SELECT count(*) FROM drop_partners WHERE drop_no = $1) AS partners
"""


def grant(
    person: str = "p1",
    number: str = "n1",
    *,
    partner_no: int = 1,
    ordinal: int = 1,
    place: int = 0,
    drop_index: int = 1,
) -> Grant:
    return Grant(drop_index, holder_of(partner_no, person), number, ordinal, place, "app", "370200")


def entry(entry_id: str, drops: Sequence[tuple[int, int]], grants: Sequence[Grant]) -> Entry:
    return Entry(entry_id, Origin(ORIGIN, 1), 0, [wire.DropEpoch(*drop) for drop in drops], grants)


class Scene:
    """One shard: its ledger, its Redis."""

    def __init__(self, settings: Settings, pool: "asyncpg.Pool[asyncpg.Record]", redis: Redis) -> None:
        self.settings = settings
        self.pool = pool
        self.redis = redis
        self.master_key = MasterKey.from_base64(settings.master_key.get_secret_value())
        self._batch_no = 0

    def unseal(self, sealed: bytes) -> bytes:
        return self.master_key.open(sealed, codes.KEY_PURPOSE)

    async def add_drop(self, drop_id: str = "drop-1", quantity: int = 100, limit: int = 1) -> Drop:
        """Define a drop and open it in Redis."""
        sealed = self.master_key.seal(CODE_KEY, codes.KEY_PURPOSE)
        program_no = await self.pool.fetchval(_INSERT_PROGRAM, sealed)
        await self.pool.execute(_INSERT_TEMPLATE, program_no)
        await self.pool.fetchval(_INSERT_DROP, drop_id, program_no, quantity, limit)
        (drop,) = await load_drops(self.pool, [drop_id])
        await publish_new_drop(self.redis, drop)
        return drop

    async def grab(self, *grabs: Grab, epoch: int = 1) -> list[Outcome]:
        """Have the gate decide a batch."""
        drops: dict[tuple[int, int], int] = {}
        indexed = [wire.grab_row(drops.setdefault((g.drop_no, epoch), len(drops) + 1), g) for g in grabs]
        self._batch_no += 1
        origin = wire.encode_origin(ORIGIN, self._batch_no)
        names, arguments = grab_command(SHARD, origin, list(drops), indexed, 100_000)
        reply = await SCRIPT.run(self.redis, names, arguments)
        return [OUTCOME_OF[code] for code in reply[0]]

    async def state(self, drop: Drop, epoch: int = 1) -> dict[str, int]:
        found: Any = await self.redis.hgetall(keys.state_key(SHARD, drop.drop_no, epoch))
        return {name.decode(): int(value) for name, value in found.items()}

    async def holders(self, drop: Drop, epoch: int = 1) -> dict[str, str]:
        found: Any = await self.redis.hgetall(keys.holders_key(SHARD, drop.drop_no, epoch))
        return {field.decode(): note.decode() for field, note in found.items()}

    async def stream_length(self) -> int:
        return await self.redis.xlen(keys.grants_key(SHARD))

    async def backlog(self) -> int:
        value: Any = await self.redis.hget(keys.shard_key(SHARD), keys.BACKLOG_FIELD)
        return int(value or 0)

    async def check_ledger(self) -> None:
        """I2, I3 and I7, and that the gate's figures agree where nothing is pending."""
        async with (
            self.pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),  # a relay may be at it
        ):
            drops = await connection.fetch("SELECT drop_no, issued, quantity FROM drops")
            for drop_no, issued, quantity in drops:
                await self._check_vouchers(connection, drop_no, issued)
                assert issued <= quantity
                await self._check_told(connection, drop_no, issued, sold_out=issued == quantity)

    async def _check_vouchers(self, connection: Any, drop_no: int, issued: int) -> None:
        rows = await connection.fetch(
            "SELECT seq, code, issued_at FROM vouchers WHERE drop_no = $1 ORDER BY seq", drop_no
        )
        assert [row["seq"] for row in rows] == list(range(1, issued + 1))
        assert [row["code"] for row in rows] == codes.CodeBook(CODE_KEY).codes(drop_no, 1, issued)
        moments = [row["issued_at"] for row in rows]
        assert moments == sorted(moments), "a later number is older"

    async def _check_told(self, connection: Any, drop_no: int, issued: int, *, sold_out: bool) -> None:
        """Events tell of the first numbers, the rows of the outbox tile the others."""
        told = await connection.fetchrow(_TOLD, drop_no)
        assert told["vouchers_told"] == told["told_seq"]
        next_seq = told["told_seq"] + 1
        for row in await connection.fetch(
            "SELECT first_seq, last_seq FROM outbox WHERE drop_no = $1 AND type = 'voucher.issued' "
            "ORDER BY first_seq",
            drop_no,
        ):
            assert row["first_seq"] == next_seq
            next_seq = row["last_seq"] + 1
        assert next_seq == issued + 1
        allowed = {(1, 0), (0, told["partners"])} if sold_out else {(0, 0)}
        assert (told["sold_out_waiting"], told["sold_out_told"]) in allowed

    async def check_drained(self, drop: Drop, epoch: int = 1) -> None:
        """Nothing is pending, and Redis says of the drop what Postgres says."""
        await self.check_ledger()
        assert await self.stream_length() == 0
        assert await self.backlog() == 0
        issued = await self.pool.fetchval("SELECT issued FROM drops WHERE drop_no = $1", drop.drop_no)
        state = await self.state(drop, epoch)
        assert (state["available"], state["pending"], state["issued"]) == (drop.quantity - issued, 0, issued)
        expected = {
            f"{row['ordinal']}:{row['partner_no']}:{row['person_token']}": (
                f"{row['out_request_no']} {row['seq']} {row['issued_ms']} {row['code']}"
            )
            for row in await self.pool.fetch(
                "SELECT *, (extract(epoch FROM issued_at) * 1000)::bigint AS issued_ms "
                "FROM vouchers WHERE drop_no = $1",
                drop.drop_no,
            )
        }
        assert await self.holders(drop, epoch) == expected


@asynccontextmanager
async def listening(redis: Redis) -> AsyncIterator[dict[int, list[Confirmation]]]:
    """Confirmations by batch number, as the waiting API process hears them."""
    heard: dict[int, list[Confirmation]] = {}
    subscriber = redis.pubsub()
    await subscriber.subscribe(keys.confirm_channel(SHARD, ORIGIN))
    await subscriber.get_message(timeout=5)

    async def listen() -> None:
        async for message in subscriber.listen():
            if message["type"] == "message":
                batch = wire.decode_confirmations(message["data"])
                heard.setdefault(batch.batch_no, []).extend(batch.confirmations)

    task = asyncio.create_task(listen())
    try:
        yield heard
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await subscriber.aclose()  # type: ignore[no-untyped-call]
