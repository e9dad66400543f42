"""`couponsvc api`: answers HTTP. Any number of them may share one port."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import uvicorn

from couponsvc.api.accepting import Acceptor
from couponsvc.processes.running import EXIT_UNREACHABLE, ProcessFailed
from couponsvc.settings import Settings

BACKLOG_COUNT: Final = 4096
"""Connections that may wait to be accepted: a rush opens thousands within one second."""
KEEP_ALIVE_S: Final = 75
"""Longer than the idle time of common load balancers (60 s), so that they close first."""
GRACE_S: Final = 5
"""How long running requests may take after SIGTERM; a grab waits 2 s at most for its commit."""


COLLECT_AFTER_COUNT: Final = 20_000
"""New objects before a collection: some thousand requests in flight, a few MB."""


class _Server(uvicorn.Server):
    """Uvicorn that leaves signals to us, and the taking of connections to an `Acceptor`."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        make_protocol: Callable[[], asyncio.Protocol] = partial(
            self.config.http_protocol_class,
            config=self.config,  # type: ignore[call-arg]  # what uvicorn's own factory gives it
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        acceptors = [Acceptor(listener, make_protocol, BACKLOG_COUNT) for listener in sockets or ()]
        self.servers = acceptors  # type: ignore[assignment]  # uvicorn closes them and waits until they are

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def run_api(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set; then finish what runs, and only then what it runs on.

    Raises:
        ProcessFailed: the address cannot be used.
        OSError, asyncpg.PostgresError: Postgres cannot be reached.
        Exception: whatever ended a background task; a supervisor starts the process again.
    """
    from couponsvc.api.compose import ApiProcess  # noqa: PLC0415 - other processes need no web framework
    from couponsvc.api.connection_room import let_tcp_watch, room_of_this_process  # noqa: PLC0415
    from couponsvc.api.express import protocol_of  # noqa: PLC0415

    listener = listen(settings.host, settings.port)
    let_tcp_watch(listener)
    process = await ApiProcess.open(settings)
    quit_background = asyncio.Event()
    background = asyncio.create_task(process.run(quit_background), name="background")
    spare_the_collector()
    protocol = protocol_of(process.app.entrance, room_of_this_process())
    server = _Server(_config(process.app, protocol))
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="serving")
    stopping = asyncio.create_task(stop.wait(), name="stopping")
    try:
        await asyncio.wait([serving, background, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        server.should_exit = True
        process.end_waits()  # they would last longer than the grace
        await serving
        quit_background.set()
        try:
            await background
        finally:
            await process.close()


def spare_the_collector() -> None:
    """Keep what lives as long as the process out of garbage collection, and collect less often.

    Grabs make no cycles; hundreds of thousands of objects of imported modules would be walked over
    and over for nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER_COUNT, 20, 50)


def _config(
    app: Any,  # noqa: ANN401 - an ASGI callable, as uvicorn takes it
    protocol: type[asyncio.Protocol],
) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=protocol,
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=BACKLOG_COUNT,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )


def listen(host: str, port: int) -> socket.socket:
    """A bound socket that shares its port with our other API processes.

    Raises:
        ProcessFailed: the address is taken by another program or is not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError as error:
        raise ProcessFailed(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port or --host",
            EXIT_UNREACHABLE,
        ) from error
    listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
    return listener
