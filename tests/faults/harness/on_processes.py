"""Faults of our own processes: killed, paused, broken at a kill point, with a wrong clock.

Entering a context does the harm, leaving it undoes it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from couponsvc.support.kill_points import HIT_SUFFIX
from tests.faults.harness.fault_kinds import POINTS, Details
from tests.faults.harness.inflicting import Inflicting


@asynccontextmanager
async def killed(on: Inflicting, details: Details) -> AsyncIterator[None]:
    member = str(details["member"])
    on.deployment.hold(member)
    on.deployment.kill(member)
    try:
        yield
    finally:
        on.deployment.release(member)


@asynccontextmanager
async def all_killed(on: Inflicting, details: Details) -> AsyncIterator[None]:
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
async def paused(on: Inflicting, details: Details) -> AsyncIterator[None]:
    member = str(details["member"])
    if member == "redis":
        member = on.deployment.primary  # after a failover it is another one
    on.deployment.pause(member)
    try:
        yield
    finally:
        on.deployment.resume(member)


@asynccontextmanager
async def kill_point(on: Inflicting, details: Details) -> AsyncIterator[None]:
    """Armed until somebody passes it or the time is up; who was paused is continued."""
    point = str(details["point"])
    order = on.deployment.kill_points_dir / point
    hit = order.with_name(point + HIT_SUFFIX)
    order.write_text(str(details["order"]), "ascii")
    match details.get("provoked_by"):
        case "wiped":
            await on.wipe_redis()
        case "restarted without data":
            await on.restart_redis(keep_data=False)
        case "restarted with data":
            await on.restart_redis(keep_data=True)
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


@asynccontextmanager
async def clock_off(on: Inflicting, details: Details) -> AsyncIterator[None]:
    member = str(details["member"])
    await on.deployment.clock_offset(member, float(details["offset_s"]))
    try:
        yield
    finally:
        await on.deployment.clock_offset(member, 0.0)
