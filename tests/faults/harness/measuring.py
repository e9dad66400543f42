"""What must not grow in a service that runs for ever: memory, descriptors, connections, dead rows."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import asyncpg
import msgspec
from redis.asyncio import Redis

from couponsvc.values import keys
from tests.faults.harness.deployment import Deployment

OURS: Final = ("api", "drain", "relay", "reconcile")
_PAGE_KIB: Final = os.sysconf("SC_PAGE_SIZE") // 1024

_POSTGRES: Final = """
SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
       (SELECT count(*) FROM pg_stat_activity
        WHERE state LIKE 'idle in transaction%' AND state_change < now() - interval '5 s')
         AS idle_in_transaction,
       (SELECT coalesce(sum(n_dead_tup), 0)::bigint FROM pg_stat_user_tables) AS dead_rows,
       (SELECT coalesce(sum(n_live_tup), 0)::bigint FROM pg_stat_user_tables) AS live_rows,
       (SELECT count(*) FROM outbox) AS outbox_rows,
       (SELECT count(*) FROM vouchers) AS vouchers
"""


class ProcessSample(msgspec.Struct, frozen=True):
    """One process at one moment."""

    pid: int
    resident_kib: int
    descriptors: int
    threads: int


class Sample(msgspec.Struct, frozen=True):
    """The whole service at rest."""

    at_s: float
    processes: dict[str, ProcessSample]
    postgres: dict[str, int]
    redis_connections: int
    redis_bytes: int
    stream_entries: int
    pending_entries: int
    consumers: int


async def take_sample(deployment: Deployment, at_s: float) -> Sample:
    """Look at every process and at both servers.

    Raises:
        OSError, asyncpg.PostgresError, redis.exceptions.RedisError: a server is away.
    """
    processes = {}
    for kind in OURS:
        for name in deployment.members(kind):
            pid = deployment.pid(name)
            if pid is not None:
                processes[name] = _process(pid)
    connection = await asyncpg.connect(deployment.postgres_dsn)
    try:
        row = await connection.fetchrow(_POSTGRES)
    finally:
        await connection.close()
    redis = Redis.from_url(deployment.redis_url)
    try:
        clients: Any = await redis.info("clients")
        memory: Any = await redis.info("memory")
        groups: Any = await redis.xinfo_groups(keys.grants_key(0))
        stream_entries = await redis.xlen(keys.grants_key(0))
    finally:
        await redis.aclose()
    return Sample(
        at_s=round(at_s, 1),
        processes=processes,
        postgres=dict(row or {}),
        redis_connections=clients["connected_clients"],
        redis_bytes=memory["used_memory"],
        stream_entries=stream_entries,
        pending_entries=sum(group["pending"] for group in groups),
        consumers=sum(group["consumers"] for group in groups),
    )


def _process(pid: int) -> ProcessSample:
    root = Path(f"/proc/{pid}")
    pages = int((root / "statm").read_text().split()[1])
    threads = int((root / "stat").read_text().rpartition(")")[2].split()[17])
    return ProcessSample(pid, pages * _PAGE_KIB, len(list((root / "fd").iterdir())), threads)


class Growth(msgspec.Struct, frozen=True):
    """How one figure moved between the first and the last third of a soak."""

    what: str
    first: float
    last: float
    allowed: float
    """The last may be so much, at most."""

    @property
    def excessive(self) -> bool:
        """Whether it grew."""
        return self.last > self.allowed


MEMORY_SHARE: Final = 1.1
"""Of one and the same process: caches fill, and an allocator gives little back."""
COUNT_SLACK: Final = 4
"""Descriptors and connections: pools breathe."""
DEAD_ROWS_SHARE: Final = 0.2
"""Of the living: what autovacuum leaves by its own settings."""
DEAD_ROWS_SLACK: Final = 5_000
THIRDS: Final = 3


def judge_growth(samples: Sequence[Sample]) -> list[Growth]:
    """Compare the first and the last third, of each process that lived in both.

    Connections are compared as medians, everything that must be empty at rest as its maximum.
    """
    third = max(1, len(samples) // THIRDS)
    begin, end = samples[:third], samples[-third:]
    found = [*_processes(begin, end)]
    connections = [[s.postgres["connections"] for s in third] for third in (begin, end)]
    found.append(_median_growth("postgres connections", *connections))
    found.append(
        _median_growth(
            "redis connections", (s.redis_connections for s in begin), (s.redis_connections for s in end)
        )
    )
    for what, values in _empty_at_rest(samples).items():
        found.append(Growth(what, 0, max(values), 0))
    dead, live = end[-1].postgres["dead_rows"], end[-1].postgres["live_rows"]
    found.append(
        Growth("dead rows", begin[0].postgres["dead_rows"], dead, DEAD_ROWS_SLACK + DEAD_ROWS_SHARE * live)
    )
    return found


def _processes(begin: Sequence[Sample], end: Sequence[Sample]) -> Iterable[Growth]:
    for name, last in end[-1].processes.items():
        lived = [
            s.processes[name] for s in begin if name in s.processes and s.processes[name].pid == last.pid
        ]
        if not lived:  # a fault ended it meanwhile
            continue
        ends = [s.processes[name] for s in end if name in s.processes and s.processes[name].pid == last.pid]
        first_kib, last_kib = lived[-1].resident_kib, _median(p.resident_kib for p in ends)
        yield Growth(f"{name} resident KiB", first_kib, last_kib, first_kib * MEMORY_SHARE)
        first_fds = _median(p.descriptors for p in lived)
        yield Growth(
            f"{name} descriptors", first_fds, _median(p.descriptors for p in ends), first_fds + COUNT_SLACK
        )
        yield Growth(f"{name} threads", lived[-1].threads, ends[-1].threads, lived[-1].threads + COUNT_SLACK)


def _empty_at_rest(samples: Sequence[Sample]) -> Mapping[str, list[int]]:
    return {
        "stream entries at rest": [sample.stream_entries for sample in samples],
        "pending entries at rest": [sample.pending_entries for sample in samples],
        "transactions left idle": [sample.postgres["idle_in_transaction"] for sample in samples],
    }


def _median_growth(what: str, begin: Iterable[int], end: Iterable[int]) -> Growth:
    first = _median(begin)
    return Growth(what, first, _median(end), first + COUNT_SLACK)


def _median(values: Iterable[int]) -> int:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
