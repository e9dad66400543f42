"""TCP proxies between any two processes, in a process of their own (`python -m tests.faults.harness.proxy`).

A process of their own, so that what the test does costs the line no latency, and so that they run on
uvloop whatever loop the test has. Orders and answers are lines of JSON on stdin and stdout; the end of
stdin ends the process.
"""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, NamedTuple, Self

import msgspec
import uvloop

from couponsvc.engines.child import dies_with_parent
from couponsvc.engines.engine import HOST, free_port
from tests.faults.harness.line import Line, reset
from tests.faults.harness.toxic import SOUND, Done, Order, Toxic, Way, line_of

__all__ = ["SOUND", "Address", "Proxies", "ProxyFailed", "Toxic", "Way"]

MODULE: Final = "tests.faults.harness.proxy"
ROOT: Final = Path(__file__).parents[3]
END_PATIENCE_S: Final = 5.0


class Address(NamedTuple):
    """Where something listens."""

    host: str
    port: int


class ProxyFailed(Exception):
    """The process of the proxies ended or refused an order; says which."""


class Proxies:
    """Every proxy of one deployment; a context that ends their process.

    Calls return when the order was carried out: within a millisecond or two, so they may be made from
    an event loop.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: Final[dict[str, int]] = {}
        self._toxics: Final[dict[str, Toxic]] = {}

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,
            preexec_fn=dies_with_parent(signal.SIGKILL),  # noqa: PLW1509 - one system call, before exec
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process; every connection through it ends too. May be called again."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait(END_PATIENCE_S)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()

    @property
    def pid(self) -> int:
        """Of their process."""
        assert self._process is not None
        return self._process.pid

    @property
    def names(self) -> list[str]:
        """Every proxy."""
        return list(self._ports)

    def port(self, name: str) -> int:
        """Where a proxy listens, for as long as it is there."""
        return self._ports[name]

    def toxic_of(self, name: str) -> Toxic:
        """What is wrong with a line now."""
        return self._toxics.get(name, SOUND)

    def add(self, name: str, target: Address) -> int:
        """Make a proxy; returns its port on 127.0.0.1.

        Raises:
            ProxyFailed: the name is taken.
        """
        self._ports[name] = self._ask(Order(do="add", name=name, host=target.host, port=target.port)).port
        return self._ports[name]

    def aim(self, name: str, target: Address) -> None:
        """Move the target for connections that are opened from now on; `reset` ends the others."""
        self._ask(Order(do="aim", name=name, host=target.host, port=target.port))

    def toxic(self, name: str, toxic: Toxic) -> None:
        """Replace what is wrong with a line."""
        self._toxics[name] = toxic
        self._ask(Order(do="toxic", name=name, toxic=toxic))

    def heal(self, name: str) -> None:
        """Make a line sound; what it held back arrives now."""
        self.toxic(name, SOUND)

    def heal_all(self) -> None:
        """Make every line sound."""
        for name in [name for name, toxic in self._toxics.items() if toxic != SOUND]:
            self.heal(name)

    def reset(self, name: str = "") -> int:
        """RST every open connection of a proxy (of all without a name); returns how many there were."""
        return self._ask(Order(do="reset", name=name)).count

    def _ask(self, order: Order) -> Done:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise ProxyFailed("the proxies do not run")
        try:
            process.stdin.write(line_of(order))
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError as error:
            raise ProxyFailed("the process of the proxies ended") from error
        if not answer:
            raise ProxyFailed("the process of the proxies ended")
        done = msgspec.json.decode(answer, type=Done)
        if done.error:
            raise ProxyFailed(f"{order.do} {order.name}: {done.error}")
        return done


class _Proxy:
    """One listening port."""

    def __init__(self, target: Address) -> None:
        self.target = target
        self.toxic = SOUND
        self._loop: Final = asyncio.get_running_loop()
        self._lines: Final[set[Line]] = set()
        self._connecting: Final[set[asyncio.Task[None]]] = set()
        self._server: asyncio.Server | None = None

    async def listen(self) -> int:
        while self._server is None:
            port = free_port()
            try:
                self._server = await self._loop.create_server(self._accept, HOST, port, backlog=1024)
            except OSError:  # somebody took it since
                continue
        return port

    def change(self, toxic: Toxic) -> None:
        self.toxic = toxic
        for line in list(self._lines):
            line.hasten()

    def reset(self) -> int:
        lines = [line for line in self._lines if not line.over]
        for line in lines:
            line.reset()
        self._lines.clear()
        return len(lines)

    def _accept(self) -> asyncio.Protocol:
        self._lines.difference_update([line for line in self._lines if line.over])
        return Line(lambda: self.toxic, self._loop, self._opened).client

    def _opened(self, line: Line) -> None:
        if self.toxic.refuse:
            line.reset()
            return
        self._lines.add(line)
        task = self._loop.create_task(self._connect(line))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, line: Line) -> None:
        try:
            await self._loop.create_connection(lambda: line.server, *self.target)
        except OSError:
            line.reset()
        else:
            if line.client.lost and line.server.transport is not None:
                reset(line.server.transport)


class _Process:
    """Carries out orders."""

    def __init__(self) -> None:
        self._proxies: Final[dict[str, _Proxy]] = {}

    async def obey(self, order: Order) -> Done:
        if order.do == "add":
            if order.name in self._proxies:
                return Done(error="the name is taken")
            proxy = _Proxy(Address(order.host, order.port))
            self._proxies[order.name] = proxy
            return Done(port=await proxy.listen())
        if order.name and order.name not in self._proxies:
            return Done(error="no such proxy")
        if order.do == "reset":
            chosen = [self._proxies[order.name]] if order.name else list(self._proxies.values())
            return Done(count=sum(proxy.reset() for proxy in chosen))
        proxy = self._proxies[order.name]
        if order.do == "aim":
            proxy.target = Address(order.host, order.port)
        else:
            proxy.change(order.toxic)
        return Done()


async def _serve(orders: BinaryIO, answers: BinaryIO) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), orders)
    process = _Process()
    while line := await reader.readline():
        answers.write(line_of(await process.obey(msgspec.json.decode(line, type=Order))))
        answers.flush()


if __name__ == "__main__":
    uvloop.run(_serve(sys.stdin.buffer, sys.stdout.buffer))
