"""Contender 3: the usual service. FastAPI, pydantic, a Redis script, one Postgres transaction per request.

Redis guards the stock; the voucher and its outbox row are committed before the answer (level D).
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
from fastapi import FastAPI
from fastapi.responses import Response
from redis.asyncio import BlockingConnectionPool, Redis

from bench.contenders.contract import Grab, new_code, receipt, refused

GUARD = (Path(__file__).parent / "lua" / "guarded.lua").read_text("utf-8")
INSERT_VOUCHER = """
INSERT INTO vouchers (drop_id, person_token, out_request_no, channel, region, code, issued_at)
VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING seq
"""
INSERT_OUTBOX = "INSERT INTO outbox (type, drop_id, seq) VALUES ('voucher.issued', $1, $2)"
SOLD_OUT, HAS_ONE = -1, -2


def create_app() -> FastAPI:
    """Made by uvicorn, so that pools belong to its loop."""
    redis = Redis.from_pool(BlockingConnectionPool.from_url(os.environ["REDIS_URL"], max_connections=32))
    pool = asyncpg.create_pool(os.environ["POSTGRES_DSN"], min_size=16, max_size=16)
    guard = redis.register_script(GUARD)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with redis, pool:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/drops/{drop_id}/grabs")
    async def grab(drop_id: str, body: Grab) -> Response:
        keys = [f"stock:{drop_id}", f"persons:{drop_id}"]
        left = await guard(keys, [body.person_token])
        if left == SOLD_OUT:
            return refused("sold_out")
        if left == HAS_ONE:
            return refused("person_limit")
        code, now = new_code(), datetime.now(UTC)
        fields = (body.person_token, body.out_request_no, body.channel, body.region, code, now)
        try:
            async with pool.acquire() as connection, connection.transaction():
                seq = await connection.fetchval(INSERT_VOUCHER, drop_id, *fields)
                await connection.execute(INSERT_OUTBOX, drop_id, seq)
        except asyncpg.PostgresError:
            async with redis.pipeline() as undo:
                undo.incr(keys[0])
                undo.srem(keys[1], body.person_token)
                await undo.execute()
            raise
        voucher = receipt(drop_id, seq, code, body, now)
        return Response(voucher.model_dump_json(), 201, media_type="application/json")

    return app
