"""Faults of Redis and Postgres: dead, empty, out of date, out of room, out of reach.

Entering a context does the harm, leaving it undoes it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from redis.exceptions import RedisError

from tests.faults.harness.fault_kinds import LINKS, Details
from tests.faults.harness.inflicting import Inflicting
from tests.faults.harness.proxy import Toxic, Way

CONFIRMATIONS_LOST_EVERY_S: Final = 0.3
"""The API subscribes again at once, so one loss is a moment."""


@asynccontextmanager
async def restarted_with_data(on: Inflicting, _details: Details) -> AsyncIterator[None]:
    await on.restart_redis(keep_data=True)
    yield


@asynccontextmanager
async def restarted_without_data(on: Inflicting, _details: Details) -> AsyncIterator[None]:
    await on.restart_redis(keep_data=False)
    yield


@asynccontextmanager
async def wiped(on: Inflicting, _details: Details) -> AsyncIterator[None]:
    await on.wipe_redis()
    yield


@asynccontextmanager
async def scripts_flushed(on: Inflicting, _details: Details) -> AsyncIterator[None]:
    await on.deployment.redis_script_flush()
    yield


@asynccontextmanager
async def out_of_memory(on: Inflicting, _details: Details) -> AsyncIterator[None]:
    await on.deployment.redis_out_of_memory(on=True)
    try:
        yield
    finally:
        await on.deployment.redis_out_of_memory(on=False)


@asynccontextmanager
async def older_copy(on: Inflicting, _details: Details) -> AsyncIterator[None]:
    """The copy is made when it begins and restored when it ends."""
    await on.deployment.redis_copy_data()
    try:
        yield
    finally:
        await on.witness.end()
        await on.deployment.redis_restore_copy()
        await on.witness.server_changed()


@asynccontextmanager
async def confirmations_lost(on: Inflicting, _details: Details) -> AsyncIterator[None]:
    """Again and again for as long as it lasts."""
    ended = asyncio.Event()

    async def lose() -> None:
        while not ended.is_set():  # not cancelled: a client that is being closed may swallow that
            with contextlib.suppress(RedisError):  # another fault may have it down
                await on.deployment.lose_confirmations()
            await asyncio.sleep(CONFIRMATIONS_LOST_EVERY_S)

    losing = asyncio.create_task(lose())
    try:
        yield
    finally:
        ended.set()
        await losing


@asynccontextmanager
async def failed_over(on: Inflicting, details: Details) -> AsyncIterator[None]:
    """Everybody is led to a replica that misses the last writes; or only some, and both are written to."""
    await on.fail_over(float(details["stale_s"]), _moved(details))
    try:
        yield
    finally:
        await on.rejoin()


@asynccontextmanager
async def old_primary_back(on: Inflicting, details: Details) -> AsyncIterator[None]:
    """A failover of everybody, and then everybody or only the API is led back to the server of before."""
    await on.fail_over(float(details["stale_s"]))
    try:
        yield
        await on.fail_back(_moved(details))
        await on.last(float(details["back_for_s"]))
    finally:
        await on.rejoin()


def _moved(details: Details) -> tuple[str, ...]:
    return () if details["moved"] == "everybody" else (str(details["moved"]),)


@asynccontextmanager
async def redis_disk_full(on: Inflicting, _details: Details) -> AsyncIterator[None]:
    await on.deployment.redis_disk_full(on=True)
    try:
        yield
    finally:
        await on.deployment.redis_disk_full(on=False)


@asynccontextmanager
async def postgres_stopped(on: Inflicting, _details: Details) -> AsyncIterator[None]:
    await on.deployment.postgres_stop_hard()
    try:
        yield
    finally:
        await on.deployment.postgres_start()


@asynccontextmanager
async def postgres_unreachable(on: Inflicting, details: Details) -> AsyncIterator[None]:
    links = [link for link in LINKS if link.endswith("-postgres")]
    toxic = Toxic(refuse=True) if details["how"] == "refused" else Toxic(cut=Way.BOTH)
    if toxic.refuse:
        for link in links:
            on.deployment.proxies.reset(link)
    async with on.wrong(links, toxic):
        yield


@asynccontextmanager
async def postgres_disk_full(on: Inflicting, _details: Details) -> AsyncIterator[None]:
    await on.deployment.postgres_disk_full(on=True)
    try:
        yield
    finally:
        await on.deployment.postgres_disk_full(on=False)
