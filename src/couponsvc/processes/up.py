"""`couponsvc up`: everything on one machine, on embedded engines where no URL is given.

Owns all it starts: engines first, then the schema, then the processes of the service;
stopped in the opposite order, so that what is in flight is confirmed before Postgres ends.
"""

import asyncio
import base64
import os
import secrets
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from couponsvc.engines.account import Account
from couponsvc.engines.engine import EmbeddedEngine, write_private
from couponsvc.engines.place import DataDirLock, make_data_dir
from couponsvc.engines.postgres import EmbeddedPostgres
from couponsvc.engines.redis import EmbeddedRedis
from couponsvc.processes.migrate import migrate_and_tell
from couponsvc.processes.port import reserve_port
from couponsvc.processes.ready import wait_until_ready
from couponsvc.processes.run_file import MASTER_KEY_FILE_NAME, RunFile, remove_run_file, write_run_file
from couponsvc.processes.running import STOP_SIGNALS
from couponsvc.processes.supervisor import EngineUnit, ProcessUnit, Supervisor, Unit
from couponsvc.support.ending import end_tasks

MASTER_KEY_BYTES: Final = 32
CREDENTIALS_FILE_NAME: Final = "credentials.json"
RELAY_NICENESS: Final = 5
"""On one machine with everything else grabs come first: a third of their weight (docs/decisions/0014)."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What the command line says."""

    host: str
    port: int
    data_dir: Path
    workers: int
    redis_url: str | None
    postgres_dsn: str | None


def say(line: str) -> None:
    """Tell the person at the terminal."""
    print(line, flush=True)  # noqa: T201 - the command's output


class Up:
    """One run of `up`."""

    def __init__(self, options: UpOptions) -> None:
        self._options: Final = options
        self._data_dir: Final = options.data_dir.absolute()
        self._own: Final = Account(os.geteuid(), os.getegid(), switched=False)
        self._stop: Final = asyncio.Event()
        self._supervisor: Final = Supervisor(self._forget)

    async def run(self) -> None:
        """Start everything, wait for a stop signal, stop everything.

        Raises:
            EngineError, ProcessFailed, OSError, asyncpg.PostgresError: something does not start;
                what was started before it has been stopped.
        """
        self._watch_signals()
        async with AsyncExitStack() as stack:
            make_data_dir(self._data_dir, Account.current())
            stack.enter_context(self._locked())
            remove_run_file(self._data_dir)  # of a run that was killed
            port = stack.enter_context(reserve_port(self._options.host, self._options.port))
            starting = asyncio.create_task(self._start(stack, port))
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            try:
                if not starting.done():
                    await end_tasks(starting)
                else:
                    starting.result()
                    await stopping
                    say("stopping")
            finally:
                stopping.cancel()

    async def _start(self, stack: AsyncExitStack, port: int) -> None:
        options = self._options
        redis_url = options.redis_url or await self._start_redis(stack)
        dsn = options.postgres_dsn or await self._start_postgres(stack)
        await migrate_and_tell(dsn)
        self._fresh_metrics_dir()
        master_key = self._master_key()
        await self._make_credentials(dsn, master_key)
        environment = {
            "COUPONSVC_REDIS_URL": redis_url,
            "COUPONSVC_POSTGRES_DSN": dsn,
            "COUPONSVC_MASTER_KEY": master_key,
            "COUPONSVC_HOST": options.host,
            "COUPONSVC_PORT": str(port),
            "COUPONSVC_LOG_FORMAT": os.environ.get("COUPONSVC_LOG_FORMAT", "console"),
        }
        # Pushed first, stopped last: the drainer confirms what the API processes still wait for.
        behind = [
            ProcessUnit("drain", ["drain"], environment),
            ProcessUnit("reconcile", ["reconcile"], environment),
            ProcessUnit("relay", ["relay", "--nice", str(RELAY_NICENESS)], environment),
        ]
        await self._start_units(stack, behind)
        workers = [
            ProcessUnit(f"api-{number}", ["api"], environment) for number in range(1, options.workers + 1)
        ]
        await self._start_units(stack, workers)
        host = f"[{options.host}]" if ":" in options.host else options.host
        url = f"http://{host}:{port}"
        await wait_until_ready(options.host, port, [*behind, *workers])
        write_run_file(self._data_dir, RunFile(url, redis_url, dsn))
        stack.callback(remove_run_file, self._data_dir)
        say(f"listening on {url}")

    async def _start_redis(self, stack: AsyncExitStack) -> str:
        engine = EmbeddedRedis(self._data_dir)
        await self._start_engine(stack, engine)
        return engine.url

    async def _start_postgres(self, stack: AsyncExitStack) -> str:
        engine = EmbeddedPostgres(self._data_dir)
        await self._start_engine(stack, engine)
        return engine.dsn

    async def _start_engine(self, stack: AsyncExitStack, engine: EmbeddedEngine) -> None:
        await self._start_units(stack, [EngineUnit(engine)])
        say(engine.describe())

    async def _start_units(self, stack: AsyncExitStack, units: Sequence[Unit]) -> None:
        stack.push_async_callback(self._supervisor.stop, units)
        for unit in units:
            await self._supervisor.start(unit)

    def _master_key(self) -> str:
        """The installation's master key, base64: from the environment, else made once and kept."""
        if key := os.environ.get("COUPONSVC_MASTER_KEY"):
            return key
        path = self._data_dir / MASTER_KEY_FILE_NAME
        if not path.exists():
            key = base64.b64encode(secrets.token_bytes(MASTER_KEY_BYTES)).decode()
            write_private(path, key + "\n", self._own)
        return path.read_text("ascii").strip()

    async def _make_credentials(self, dsn: str, master_key: str) -> None:
        """Admit one operator, one auditor and one partner for development, on first start."""
        path = self._data_dir / CREDENTIALS_FILE_NAME
        if path.exists():
            return
        from couponsvc.processes.development import development_credentials  # noqa: PLC0415 - first start only

        text = await development_credentials(dsn, master_key)
        if text is None:
            say(f"{path} is gone and cannot be shown again; make new ones with `couponsvc key create`")
            return
        write_private(path, text, self._own)
        say(f"credentials for development in {path}")

    def _fresh_metrics_dir(self) -> None:
        """An empty directory for the counters of this run's processes (see `support.metrics`)."""
        path = self._data_dir / "metrics"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
        os.environ["COUPONSVC_METRICS_DIR"] = str(path)  # also for `_forget`, in this process

    def _forget(self, unit: Unit, pid: int) -> None:
        """A process of the service died: its gauges must not count on."""
        if isinstance(unit, ProcessUnit):
            from couponsvc.support import metrics  # noqa: PLC0415 - reads the directory at import

            with suppress(OSError):  # it had written none, or they are gone already
                metrics.forget_process(pid)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = DataDirLock(self._data_dir)
        lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._obey, number)

    def _obey(self, number: signal.Signals) -> None:
        """First signal: stop in order. Second SIGINT: kill, for whoever cannot wait."""
        if self._stop.is_set() and number == signal.SIGINT:
            self._supervisor.kill_all()
        self._stop.set()
