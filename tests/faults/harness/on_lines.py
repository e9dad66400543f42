"""Faults of the lines between processes and servers: cut one way, slow, dripping, reset, refused.

Entering a context does the harm, leaving it undoes it.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from tests.faults.harness.fault_kinds import LINKS, Details
from tests.faults.harness.inflicting import Inflicting
from tests.faults.harness.proxy import Toxic, Way


@asynccontextmanager
async def reset(on: Inflicting, details: Details) -> AsyncIterator[None]:
    on.deployment.proxies.reset(str(details["link"]))
    yield


@asynccontextmanager
async def refused(on: Inflicting, details: Details) -> AsyncIterator[None]:
    async with on.wrong([str(details["link"])], Toxic(refuse=True)):
        on.deployment.proxies.reset(str(details["link"]))
        yield


def cut(on: Inflicting, details: Details) -> AbstractAsyncContextManager[None]:
    return on.wrong([str(details["link"])], Toxic(cut=Way(str(details["way"]))))


def slow(on: Inflicting, details: Details) -> AbstractAsyncContextManager[None]:
    latency_ms = float(details["latency_ms"])
    return on.wrong([str(details["link"])], Toxic(latency_ms=latency_ms, jitter_ms=latency_ms / 2))


def drips(on: Inflicting, details: Details) -> AbstractAsyncContextManager[None]:
    return on.wrong([str(details["link"])], Toxic(bytes_per_s=int(details["bytes_per_s"])))


def held_back(on: Inflicting, details: Details) -> AbstractAsyncContextManager[None]:
    return on.wrong([str(details["link"])], Toxic(hold_reply_s=float(details["hold_reply_s"])))


def everything_slow(on: Inflicting, details: Details) -> AbstractAsyncContextManager[None]:
    return on.wrong(list(LINKS), Toxic(latency_ms=float(details["latency_ms"]), jitter_ms=10))
