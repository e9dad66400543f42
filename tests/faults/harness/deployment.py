"""A whole service as real processes, each in its own process group and behind its own proxies.

`couponsvc up` is not used on purpose: it would start again what a fault keeps down, and nothing could
stand between its processes. A proxy is named `<kind>-<server>`: `api-redis`, `drain-postgres`, … Every
process of a kind shares its two. With a replica, `replica-redis` carries the replication.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

from couponsvc.engines.account import Account
from couponsvc.engines.engine import HOST, write_private
from couponsvc.engines.place import make_data_dir
from couponsvc.engines.redis import EmbeddedRedis
from couponsvc.processes.port import reserve_port
from couponsvc.processes.ready import ask
from couponsvc.support.kill_points import VARIABLE as KILL_POINTS_VARIABLE
from couponsvc.support.signing import HmacKey
from tests.faults.harness import clocks
from tests.faults.harness.environment import moved_to, surroundings
from tests.faults.harness.failover import REPLICATION, Failover
from tests.faults.harness.final import Heard
from tests.faults.harness.ledger_template import LedgerTemplate, remove_data
from tests.faults.harness.members import EngineMember, ProcessMember
from tests.faults.harness.proxy import Address
from tests.faults.harness.receiver import KIND as RECEIVER
from tests.faults.harness.receiver import ReceiverMember

KINDS: Final = ("drain", "reconcile", "relay", "api")
"""In the order in which they are started."""
REDIS_SETTINGS: Final[Mapping[str, str]] = {"repl-diskless-sync-delay": "0"}
"""A replica that comes back does not wait 5 s for others to join it."""
READY_PATIENCE_S: Final = 60.0
ASK_EVERY_S: Final = 0.05
READY_COUNT: Final = 5
"""Answers of `/readyz` in a row: several API processes share the port, and each must be ready."""


class NotReady(Exception):
    """The service does not become ready; says what `/readyz` answered last."""


class Deployment(Failover):
    """A running service; an async context that leaves no process behind.

    Args:
        base: Directory of its own, made where it is missing. Logs stay in `<base>/logs`, the servers' data
            goes. As root it must be one that everybody may enter (0711), or the servers live elsewhere.
        api_count: API processes, which share one port.
        drain_count: Drainers.
        relay_count: Relays.
        reconcile_count: Reconcilers.
        with_replica: Redis has a replica, for failovers.
        with_receiver: The first partner has subscribed a receiver of webhooks, a member like others.
        source: Goes first on the processes' PYTHONPATH: a copy of `src` with a planted bug. The schema stays
            that of this checkout.
        environment: Settings of the processes (`COUPONSVC_…`), on top of those made here.
    """

    def __init__(
        self,
        base: Path,
        *,
        api_count: int = 2,
        drain_count: int = 2,
        relay_count: int = 1,
        reconcile_count: int = 2,
        with_replica: bool = False,
        with_receiver: bool = False,
        source: Path | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self._counts: Final = {
            "api": api_count,
            "drain": drain_count,
            "relay": relay_count,
            "reconcile": reconcile_count,
        }
        self._base: Final = base.absolute()
        self._data_dir: Final = self._base / "data"
        self._logs_dir: Final = self._base / "logs"
        self.kill_points_dir: Final = self._base / "kill-points"
        self._source: Final = source
        self._extra: Final = dict(environment)
        self._with_replica: Final = with_replica
        self._with_receiver: Final = with_receiver
        self._stack: Final = ExitStack()
        self._port = 0
        self.keys: Mapping[str, HmacKey] = {}
        self.operator_token = ""
        self.auditor_token = ""
        self._master_key = ""

    @property
    def url(self) -> str:
        """Of the API, past all proxies."""
        return f"http://{HOST}:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """For commands such as `couponsvc check`: of this deployment's servers, past all proxies."""
        return self._environment_of(self.redis_url, self.postgres_dsn)

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def heard(self) -> list[Heard]:
        """What the receiver kept so far; nothing where there is none."""
        receiver = self._members.get(RECEIVER)
        return receiver.heard() if isinstance(receiver, ReceiverMember) else []

    async def stop(self) -> None:
        """SIGKILL everything and remove the servers' data. May be called again."""
        await self._stop_supervising()
        if "postgres" in self._members:  # killed, it would leave its shared memory behind
            self.resume("postgres")
            await self.postgres_stop_hard()
        for member in reversed(self._members.values()):
            member.kill()
        self._keep_server_logs()
        self._stack.close()
        await asyncio.to_thread(remove_data, self._data_dir)

    async def until_ready(self, timeout_s: float = READY_PATIENCE_S) -> None:
        """Return when `/readyz` answers 200, several times in a row.

        Raises:
            NotReady: not within `timeout_s`.
        """
        give_up_at = time.monotonic() + timeout_s
        ready_count, answer = 0, "no answer"
        while ready_count < READY_COUNT:
            ready, answer = await ask(HOST, self._port, answer)
            ready_count = ready_count + 1 if ready else 0
            if not ready:
                if time.monotonic() > give_up_at:
                    raise NotReady(f"not ready within {timeout_s} s: {answer}")
                await asyncio.sleep(ASK_EVERY_S)

    @property
    def can_fake_clock(self) -> bool:
        """Whether this machine has libfaketime."""
        return clocks.library() is not None

    async def clock_offset(self, name: str, seconds: float) -> None:
        """Restart a process of ours with a wall clock that is off by so much; 0: a right one.

        Raises:
            RuntimeError: this machine has no libfaketime.
        """
        member = self._members[name]
        assert isinstance(member, ProcessMember)
        member.own_environment = clocks.offset_environment(seconds)
        await self.down(name)
        await self.up(name)

    async def heal(self) -> None:
        """End every fault: lines, holds, pauses, orders at kill points, full disks and memory, clocks,
        servers that are down or apart. Returns when the servers run; `until_ready` waits for the service."""
        self.proxies.heal_all()
        for order in self.kill_points_dir.iterdir():
            order.unlink(missing_ok=True)
        await self.redis_disk_full(on=False)
        await self.postgres_disk_full(on=False)
        self.release_all()
        for server in (*self.members("postgres"), *self.members("redis"), *self.members("replica")):
            await self.up(server)
        await self.until_postgres_answers()
        await self.redis_out_of_memory(on=False)
        if self._with_replica:
            await self.rejoin()
        for member in self._members.values():
            if isinstance(member, ProcessMember) and member.own_environment:
                await self.clock_offset(member.name, 0)

    async def _start(self) -> None:
        self._data_dir.parent.mkdir(parents=True, exist_ok=True)
        make_data_dir(self._data_dir, Account.current())
        for directory in (self._logs_dir, self.kill_points_dir, self._base / "metrics"):
            directory.mkdir(exist_ok=True)
        template = await LedgerTemplate.get()
        admitted = template.admitted
        self.keys, self._master_key = admitted.keys, admitted.master_key
        self.operator_token, self.auditor_token = admitted.operator_token, admitted.auditor_token
        postgres = await asyncio.to_thread(template.copy_to, self._data_dir)
        redis = EmbeddedRedis(self._data_dir, settings=REDIS_SETTINGS)
        await self._start_engine(EngineMember("postgres", "postgres", postgres, self._started))
        await self._start_engine(EngineMember("redis", "redis", redis, self._started))
        self._stack.enter_context(self.proxies)
        self._port = self._stack.enter_context(reserve_port(HOST, 0))
        for kind in KINDS:
            await self._start_kind(kind)
        if self._with_replica:
            await self._start_replica(redis)
        self._supervise()
        await self.until_ready()
        if self._with_receiver:
            await self._start_receiver()

    async def _start_engine(self, member: EngineMember) -> None:
        self._members[member.name] = member
        await member.start()

    async def _start_replica(self, primary: EmbeddedRedis) -> None:
        replica = EmbeddedRedis(
            make_data_dir(self._data_dir / "replica", Account.current()), settings=REDIS_SETTINGS
        )
        password = urlsplit(primary.url).password or ""
        # One password for both: whoever was led to the other server logs in as before.
        write_private(replica.home / "password", password, replica.account)
        await self._start_engine(EngineMember("replica", "replica", replica, self._started))
        self.proxies.add(REPLICATION, Address(HOST, primary.port))
        await self.rejoin()

    async def _start_receiver(self) -> None:
        partner_id, key = next(iter(self.keys.items()))
        receiver = ReceiverMember(
            partner_id, self.environment, self._data_dir, self._logs_dir / "receiver.log"
        )
        await asyncio.to_thread(receiver.subscribe, self.url, key)
        await receiver.start()
        self._members[receiver.name] = receiver

    async def _start_kind(self, kind: str) -> None:
        redis_url = self._proxied(f"{kind}-redis", self.redis_url)
        dsn = self._proxied(f"{kind}-postgres", self.postgres_dsn)
        environment = self._environment_of(redis_url, dsn)
        for number in range(self._counts[kind]):
            name = f"{kind}{number}"
            member = ProcessMember(name, kind, environment, self._logs_dir / f"{name}.log")
            self._members[name] = member
            await member.start()

    def _proxied(self, name: str, url: str) -> str:
        """The same URL through a new proxy."""
        return moved_to(url, self.proxies.add(name, Address(HOST, urlsplit(url).port or 0)))

    def _environment_of(self, redis_url: str, dsn: str) -> dict[str, str]:
        settings = {
            "COUPONSVC_REDIS_URL": redis_url,
            "COUPONSVC_POSTGRES_DSN": dsn,
            "COUPONSVC_MASTER_KEY": self._master_key,
            "COUPONSVC_HOST": HOST,
            "COUPONSVC_PORT": str(self._port),
            "COUPONSVC_METRICS_DIR": str(self._base / "metrics"),
            "COUPONSVC_WEBHOOK_ALLOW_PRIVATE": "true",  # receivers listen on loopback
            KILL_POINTS_VARIABLE: str(self.kill_points_dir),
        }
        return {**surroundings(self._source), **settings, **self._extra}

    def _keep_server_logs(self) -> None:
        for member in self._members.values():
            if isinstance(member, EngineMember):
                with contextlib.suppress(OSError):
                    member.log_path.rename(self._logs_dir / f"{member.name}.log")
