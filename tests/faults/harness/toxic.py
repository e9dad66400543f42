"""What a proxy does to the bytes that pass through it."""

from enum import StrEnum
from typing import Any

import msgspec


class Way(StrEnum):
    """A direction of a proxied connection, seen from the client."""

    UP = "up"
    """From the client to the server: requests."""
    DOWN = "down"
    """From the server to the client: replies."""
    BOTH = "both"

    def covers(self, way: "Way") -> bool:
        """Whether what is said of `self` is true of `way`."""
        return self in {Way.BOTH, way}


class Toxic(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is wrong with a line at one time; parts combine. The empty one is a sound line."""

    latency_ms: float = 0
    """Every byte arrives so much later, in order."""
    jitter_ms: float = 0
    """At most so much more, at random, per arriving piece."""
    way: Way = Way.BOTH
    """Where latency and dripping happen."""
    bytes_per_s: int = 0
    """Each connection passes at most so much; 0: no limit."""
    cut: Way | None = None
    """Nothing passes this way, connections stay open. What was sent meanwhile arrives on healing, as it
    would after a partition of a real network: TCP repeats it, even when its sender has left since."""
    refuse: bool = False
    """New connections are reset at once."""
    hold_reply_s: float = 0
    """Requests pass at once, what comes back is held back so long."""

    def cuts(self, way: Way) -> bool:
        """Whether nothing passes this way."""
        return self.cut is not None and self.cut.covers(way)

    def delay_s(self, way: Way, chance: float) -> float:
        """How much later something arrives; `chance` in 0..1 chooses within the jitter."""
        delay_s = (self.latency_ms + self.jitter_ms * chance) / 1000 if self.way.covers(way) else 0.0
        return delay_s + (self.hold_reply_s if way is Way.DOWN else 0.0)

    def rate(self, way: Way) -> int:
        """Bytes per second this way; 0: no limit."""
        return self.bytes_per_s if self.way.covers(way) else 0


SOUND = Toxic()
"""A line with which nothing is wrong."""


class Order(msgspec.Struct, omit_defaults=True):
    """One line to the process of the proxies."""

    do: str
    """`add`, `aim`, `toxic` or `reset`."""
    name: str = ""
    """Of a proxy; empty: all of them."""
    host: str = ""
    port: int = 0
    toxic: Toxic = SOUND


class Done(msgspec.Struct, omit_defaults=True):
    """Its answer."""

    port: int = 0
    """`add`: where it listens."""
    count: int = 0
    """`reset`: connections that were open."""
    error: str = ""


def line_of(message: Any) -> bytes:
    """A message as one line of JSON."""
    return msgspec.json.encode(message) + b"\n"
