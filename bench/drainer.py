"""What a voucher costs the drainer: CPU microseconds per voucher, in batches of several sizes.

Run `python -m bench.drainer` at the top of the checkout: starts the embedded engines, prints a
table, leaves nothing behind.
"""

import base64
from time import perf_counter, process_time

import uvloop
from tests.ledgers import Scene
from tests.servers import PostgresServer, RedisServer, short_directory

from couponsvc.ledger.codes import CodeBook
from couponsvc.ledger.drainer import Drainer
from couponsvc.settings import Settings
from couponsvc.support.postgres import open_pool
from couponsvc.support.redis_client import open_redis
from couponsvc.values.grab import Grab

BATCHES = ((1, 400), (16, 200), (64, 200), (500, 60))
"""`(grants per stream entry, entries)`; every entry is read and committed alone."""


async def measure(scene: Scene, settings: Settings, size: int, count: int) -> tuple[float, float]:
    """CPU of this process and wall time per voucher, in µs, settling entry after entry."""
    drop = await scene.add_drop(f"bench-{size}", quantity=size * (count + 1))
    drainer = await Drainer.open(settings)
    cpu_s = wall_s = 0.0
    for batch in range(count + 1):
        await scene.grab(
            *(Grab(drop.drop_no, f"1:p{batch}-{i}", f"n{size}-{batch}-{i}", "app", "") for i in range(size))
        )
        cpu_at, wall_at = process_time(), perf_counter()
        counts = await drainer.run_once()
        if batch:  # the first one prepares statements
            cpu_s += process_time() - cpu_at
            wall_s += perf_counter() - wall_at
        assert counts.committed == size
    await drainer.close()
    vouchers = size * count
    return cpu_s / vouchers * 1e6, wall_s / vouchers * 1e6


def measure_codes(size: int) -> float:
    """CPU µs per code, computed in batches of `size`."""
    book = CodeBook(bytes(32))
    rounds = max(10, 20_000 // size)
    at = process_time()
    for index in range(rounds):
        book.codes(7, 1 + index * size, size)
    return (process_time() - at) / rounds / size * 1e6


async def main() -> None:
    with short_directory() as redis_dir, short_directory() as postgres_dir:
        redis_server, postgres_server = RedisServer(redis_dir), PostgresServer(postgres_dir)
        dsn = await postgres_server.create_database()
        master_key = base64.b64encode(bytes(32)).decode()
        settings = Settings.model_validate(
            {"redis_url": redis_server.url, "postgres_dsn": dsn, "master_key": master_key}
        )
        pool, redis = await open_pool(dsn), open_redis(redis_server.url)
        scene = Scene(settings, pool, redis)
        print("batch   drainer CPU µs   wall µs   of which codes µs   (per voucher)")
        for size, count in BATCHES:
            cpu_us, wall_us = await measure(scene, settings, size, count)
            print(f"{size:5}   {cpu_us:14.1f}   {wall_us:7.1f}   {measure_codes(size):17.2f}")
        await redis.aclose()
        await pool.close()
        redis_server.kill()
        postgres_server.engine.stop()


if __name__ == "__main__":
    uvloop.run(main())
