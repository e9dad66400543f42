"""Which fault of a plan is carried out by what."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import Final

from tests.faults.harness import on_lines, on_processes, on_servers
from tests.faults.harness.fault_kinds import Details
from tests.faults.harness.inflicting import Inflicting

Infliction = Callable[[Inflicting, Details], AbstractAsyncContextManager[None]]

INFLICTIONS: Final[Mapping[str, Infliction]] = MappingProxyType(
    {
        "killed": on_processes.killed,
        "all of a kind killed": on_processes.all_killed,
        "paused": on_processes.paused,
        "kill point": on_processes.kill_point,
        "second kill point": on_processes.kill_point,
        "redis restarted with data": on_servers.restarted_with_data,
        "redis restarted without data": on_servers.restarted_without_data,
        "redis wiped": on_servers.wiped,
        "redis scripts flushed": on_servers.scripts_flushed,
        "redis out of memory": on_servers.out_of_memory,
        "redis from an older copy": on_servers.older_copy,
        "redis failover to a stale replica": on_servers.failed_over,
        "redis old primary comes back": on_servers.old_primary_back,
        "confirmations lost": on_servers.confirmations_lost,
        "redis disk full": on_servers.redis_disk_full,
        "postgres stopped hard": on_servers.postgres_stopped,
        "postgres restarted": on_servers.postgres_stopped,
        "postgres unreachable": on_servers.postgres_unreachable,
        "postgres disk full": on_servers.postgres_disk_full,
        "link cut": on_lines.cut,
        "connections reset": on_lines.reset,
        "connections refused": on_lines.refused,
        "link slow": on_lines.slow,
        "link drips": on_lines.drips,
        "replies held back": on_lines.held_back,
        "everything slow": on_lines.everything_slow,
        "clock off": on_processes.clock_off,
    }
)
