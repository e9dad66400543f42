"""One asynchronous context per kind of fault: entering it does the harm, leaving it undoes it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import MappingProxyType
from typing import Final

import msgspec
from redis.exceptions import RedisError

from couponsvc.support.kill_points import HIT_SUFFIX
from tests.faults.harness.deployment import Deployment
from tests.faults.harness.fault_kinds import LINKS, POINTS, Details
from tests.faults.harness.proxy import Toxic, Way

CONFIRMATIONS_LOST_EVERY_S: Final = 0.3
"""The API subscribes again at once, so one loss is a moment."""


class Inflicting:
    """What all contexts share: the deployment, what is wrong with each line, when it is over."""

    def __init__(self, deployment: Deployment, over: asyncio.Event) -> None:
        self.deployment: Final = deployment
        self.over: Final = over
        self.hit_points: Final[list[str]] = []
        self._wrong: Final[dict[str, list[Toxic]]] = {}

    async def last(self, seconds: float) -> None:
        """Wait, at most until the run is over."""
        if seconds > 0:
            try:
                await asyncio.wait_for(self.over.wait(), seconds)
            except TimeoutError:
                return

    @asynccontextmanager
    async def wrong(self, links: list[str], toxic: Toxic) -> AsyncIterator[None]:
        """Something is wrong with lines, beside what is wrong with them already."""
        for link in links:
            self._wrong.setdefault(link, []).append(toxic)
            self._tell(link)
        try:
            yield
        finally:
            for link in links:
                self._wrong[link].remove(toxic)
                self._tell(link)

    def _tell(self, link: str) -> None:
        combined = Toxic()
        for toxic in self._wrong[link]:
            changed = {
                name: getattr(toxic, name)
                for name in toxic.__struct_fields__
                if getattr(toxic, name) != getattr(Toxic(), name)
            }
            combined = msgspec.structs.replace(combined, **changed)
        self.deployment.proxies.toxic(link, combined)


Infliction = Callable[[Inflicting, Details], AbstractAsyncContextManager[None]]


# --- processes ----------------------------------------------------------------------------------
@asynccontextmanager
async def _killed(on: Inflicting, details: Details) -> AsyncIterator[None]:
    member = str(details["member"])
    on.deployment.hold(member)
    on.deployment.kill(member)
    try:
        yield
    finally:
        on.deployment.release(member)


@asynccontextmanager
async def _all_killed(on: Inflicting, details: Details) -> AsyncIterator[None]:
    members = on.deployment.members(str(details["process"]))
    for member in members:
        on.deployment.hold(member)
        on.deployment.kill(member)
    try:
        yield
    finally:
        for member in members:
            on.deployment.release(member)


@asynccontextmanager
async def _paused(on: Inflicting, details: Details) -> AsyncIterator[None]:
    member = str(details["member"])
    if member == "redis":
        member = on.deployment.primary  # after a failover it is another one
    on.deployment.pause(member)
    try:
        yield
    finally:
        on.deployment.resume(member)


@asynccontextmanager
async def _kill_point(on: Inflicting, details: Details) -> AsyncIterator[None]:
    """Armed until somebody passes it or the time is up; who was paused is continued."""
    point = str(details["point"])
    order = on.deployment.kill_points_dir / point
    hit = order.with_name(point + HIT_SUFFIX)
    order.write_text(str(details["order"]), "ascii")
    match details.get("provoked_by"):
        case "wiped":
            await on.deployment.redis_wipe()
        case "restarted without data":
            await on.deployment.redis_restart(keep_data=False)
        case "restarted with data":
            await on.deployment.redis_restart(keep_data=True)
    try:
        yield
    finally:
        order.unlink(missing_ok=True)
        if hit.exists():
            on.hit_points.append(f"{point} {details['order']}")
            hit.unlink()
        if details["order"] == "pause":
            for member in on.deployment.members(POINTS[point]):
                on.deployment.resume(member)


# --- redis --------------------------------------------------------------------------------------
@asynccontextmanager
async def _restarted_with_data(on: Inflicting, _details: Details) -> AsyncIterator[None]:
    await on.deployment.redis_restart(keep_data=True)
    yield


@asynccontextmanager
async def _restarted_without_data(on: Inflicting, _details: Details) -> AsyncIterator[None]:
    await on.deployment.redis_restart(keep_data=False)
    yield


@asynccontextmanager
async def _wiped(on: Inflicting, _details: Details) -> AsyncIterator[None]:
    await on.deployment.redis_wipe()
    yield


@asynccontextmanager
async def _scripts_flushed(on: Inflicting, _details: Details) -> AsyncIterator[None]:
    await on.deployment.redis_script_flush()
    yield


@asynccontextmanager
async def _out_of_memory(on: Inflicting, _details: Details) -> AsyncIterator[None]:
    await on.deployment.redis_out_of_memory(on=True)
    try:
        yield
    finally:
        await on.deployment.redis_out_of_memory(on=False)


@asynccontextmanager
async def _older_copy(on: Inflicting, _details: Details) -> AsyncIterator[None]:
    """The copy is made when it begins and restored when it ends."""
    await on.deployment.redis_copy_data()
    try:
        yield
    finally:
        await on.deployment.redis_restore_copy()


@asynccontextmanager
async def _confirmations_lost(on: Inflicting, _details: Details) -> AsyncIterator[None]:
    """Again and again for as long as it lasts."""

    async def lose() -> None:
        while True:
            with contextlib.suppress(RedisError):  # another fault may have it down
                await on.deployment.lose_confirmations()
            await asyncio.sleep(CONFIRMATIONS_LOST_EVERY_S)

    losing = asyncio.create_task(lose())
    try:
        yield
    finally:
        losing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await losing


@asynccontextmanager
async def _failed_over(on: Inflicting, details: Details) -> AsyncIterator[None]:
    """Everybody is led to a replica that misses the last writes; or only some, and both are written to."""
    await on.deployment.failover(stale_s=float(details["stale_s"]), kinds=_moved(details))
    try:
        yield
    finally:
        await on.deployment.rejoin()


@asynccontextmanager
async def _old_primary_back(on: Inflicting, details: Details) -> AsyncIterator[None]:
    """A failover of everybody, and then everybody or only the API is led back to the server of before."""
    await on.deployment.failover(stale_s=float(details["stale_s"]))
    try:
        yield
        await on.deployment.fail_back(_moved(details))
        await on.last(float(details["back_for_s"]))
    finally:
        await on.deployment.rejoin()


def _moved(details: Details) -> tuple[str, ...]:
    return () if details["moved"] == "everybody" else (str(details["moved"]),)


@asynccontextmanager
async def _redis_disk_full(on: Inflicting, _details: Details) -> AsyncIterator[None]:
    await on.deployment.redis_disk_full(on=True)
    try:
        yield
    finally:
        await on.deployment.redis_disk_full(on=False)


# --- postgres -----------------------------------------------------------------------------------
@asynccontextmanager
async def _postgres_stopped(on: Inflicting, _details: Details) -> AsyncIterator[None]:
    await on.deployment.postgres_stop_hard()
    try:
        yield
    finally:
        await on.deployment.postgres_start()


@asynccontextmanager
async def _postgres_unreachable(on: Inflicting, details: Details) -> AsyncIterator[None]:
    links = [link for link in LINKS if link.endswith("-postgres")]
    toxic = Toxic(refuse=True) if details["how"] == "refused" else Toxic(cut=Way.BOTH)
    if toxic.refuse:
        for link in links:
            on.deployment.proxies.reset(link)
    async with on.wrong(links, toxic):
        yield


@asynccontextmanager
async def _postgres_disk_full(on: Inflicting, _details: Details) -> AsyncIterator[None]:
    await on.deployment.postgres_disk_full(on=True)
    try:
        yield
    finally:
        await on.deployment.postgres_disk_full(on=False)


# --- lines --------------------------------------------------------------------------------------
@asynccontextmanager
async def _reset(on: Inflicting, details: Details) -> AsyncIterator[None]:
    on.deployment.proxies.reset(str(details["link"]))
    yield


@asynccontextmanager
async def _refused(on: Inflicting, details: Details) -> AsyncIterator[None]:
    async with on.wrong([str(details["link"])], Toxic(refuse=True)):
        on.deployment.proxies.reset(str(details["link"]))
        yield


def _cut(on: Inflicting, details: Details) -> AbstractAsyncContextManager[None]:
    return on.wrong([str(details["link"])], Toxic(cut=Way(str(details["way"]))))


def _slow(on: Inflicting, details: Details) -> AbstractAsyncContextManager[None]:
    latency_ms = float(details["latency_ms"])
    return on.wrong([str(details["link"])], Toxic(latency_ms=latency_ms, jitter_ms=latency_ms / 2))


def _drips(on: Inflicting, details: Details) -> AbstractAsyncContextManager[None]:
    return on.wrong([str(details["link"])], Toxic(bytes_per_s=int(details["bytes_per_s"])))


def _held_back(on: Inflicting, details: Details) -> AbstractAsyncContextManager[None]:
    return on.wrong([str(details["link"])], Toxic(hold_reply_s=float(details["hold_reply_s"])))


def _everything_slow(on: Inflicting, details: Details) -> AbstractAsyncContextManager[None]:
    return on.wrong(list(LINKS), Toxic(latency_ms=float(details["latency_ms"]), jitter_ms=10))


# --- clocks -------------------------------------------------------------------------------------
@asynccontextmanager
async def _clock_off(on: Inflicting, details: Details) -> AsyncIterator[None]:
    member = str(details["member"])
    await on.deployment.clock_offset(member, float(details["offset_s"]))
    try:
        yield
    finally:
        await on.deployment.clock_offset(member, 0.0)


INFLICTIONS: Final[Mapping[str, Infliction]] = MappingProxyType(
    {
        "killed": _killed,
        "all of a kind killed": _all_killed,
        "paused": _paused,
        "kill point": _kill_point,
        "second kill point": _kill_point,
        "redis restarted with data": _restarted_with_data,
        "redis restarted without data": _restarted_without_data,
        "redis wiped": _wiped,
        "redis scripts flushed": _scripts_flushed,
        "redis out of memory": _out_of_memory,
        "redis from an older copy": _older_copy,
        "redis failover to a stale replica": _failed_over,
        "redis old primary comes back": _old_primary_back,
        "confirmations lost": _confirmations_lost,
        "redis disk full": _redis_disk_full,
        "postgres stopped hard": _postgres_stopped,
        "postgres restarted": _postgres_stopped,
        "postgres unreachable": _postgres_unreachable,
        "postgres disk full": _postgres_disk_full,
        "link cut": _cut,
        "connections reset": _reset,
        "connections refused": _refused,
        "link slow": _slow,
        "link drips": _drips,
        "replies held back": _held_back,
        "everything slow": _everything_slow,
        "clock off": _clock_off,
    }
)
