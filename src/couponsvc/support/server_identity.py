"""Who a Redis server is: a process and the history of its data.

A restart, a failover or a restored copy changes one of the two; asking on each new connection notices
all of them before the first command.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

INFO_COMMAND: Final = ("INFO", "server", "replication")
"""Several sections at once: since 7.0."""
_FACT: Final = re.compile(rb"^(run_id|role|master_replid):(.*?)\r?$", re.MULTILINE)


class ServerIdentity(NamedTuple):
    """A server process and the history of its data; a restart or failover changes one or both."""

    run_id: str
    replication_id: str


class NotMaster(Exception):
    """The server is a replica: it may be behind, and must never be blessed."""


def identity_of(text: bytes) -> ServerIdentity:
    """Read what a server answered to `INFO_COMMAND`.

    Raises:
        NotMaster: it is a replica.
    """
    return identity_of_master({name.decode(): value.decode() for name, value in _FACT.findall(text)})


def identity_of_master(facts: Mapping[str, Any]) -> ServerIdentity:
    """The same from facts by name.

    Raises:
        NotMaster: they are those of a replica.
    """
    if facts["role"] != "master":
        raise NotMaster(f"the Redis server with run id {facts['run_id']} is a {facts['role']}")
    return ServerIdentity(str(facts["run_id"]), str(facts["master_replid"]))
