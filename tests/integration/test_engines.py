"""The embedded engines: found, started, restarted, killed; data survive."""

import asyncpg
from redis.asyncio import Redis

from couponsvc.settings import Settings


async def test_a_fresh_database_is_migrated_and_the_redis_is_empty(
    redis: Redis, pool: "asyncpg.Pool[asyncpg.Record]", settings: Settings
) -> None:
    assert await redis.dbsize() == 0
    assert await pool.fetchval("SELECT count(*) FROM vouchers") == 0
    assert settings.redis_url.startswith("redis://")
