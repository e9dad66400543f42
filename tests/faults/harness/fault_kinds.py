"""Every kind of fault, in data: to whom it can happen, for how long, and what it needs of the machine."""

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

OURS: Final = ("api", "drain", "relay", "reconcile")
LINKS: Final = (
    "api-redis",
    "api-postgres",
    "drain-redis",
    "drain-postgres",
    "relay-postgres",
    "reconcile-redis",
    "reconcile-postgres",
)
"""Proxies by name: whose connections to which server."""

POINTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "gate.before_decision": "api",
        "gate.after_decision": "api",
        "gate.before_answer": "api",
        "operate.after_change": "api",
        "operate.after_taking": "api",
        "drain.after_read": "drain",
        "drain.after_commit": "drain",
        "drain.after_report": "drain",
        "drain.after_acknowledgement": "drain",
        "rebuild.before_raise": "reconcile",
        "rebuild.after_raise": "reconcile",
        "rebuild.after_fence": "reconcile",
        "rebuild.in_load": "reconcile",
        "rebuild.before_publish": "reconcile",
        "rebuild.after_publish": "reconcile",
        "rebuild.after_unload": "reconcile",
        "bless.before_blessing": "reconcile",
        "bless.after_blessing": "reconcile",
        "relay.before_delivery": "relay",
        "relay.after_delivery": "relay",
        "relay.after_mark": "relay",
        "relay.before_numbered": "relay",
        "relay.after_numbered": "relay",
    }
)
"""Kill points (`couponsvc.support.kill_points`) and which process passes them."""
ORDERS: Final = ("kill", "pause", "raise")

Value = str | float
Details = dict[str, Value]


class Capabilities(NamedTuple):
    """What a deployment on this machine can do; without it the kinds that need it are left out."""

    replica: bool = True
    clocks: bool = True


class Kind(NamedTuple):
    """One kind of fault."""

    fault_class: str
    """`process`, `point`, `redis`, `postgres`, `network`, `disk` or `clock`."""
    lasts_s: tuple[float, float]
    """From its beginning to its undoing, at random within this; what is done in an instant lasts 0."""
    details: Callable[[random.Random], Details]
    """Whom it hits and how hard."""
    needs: str = ""
    """A field of `Capabilities`."""


def _nothing(_dice: random.Random) -> Details:
    return {}


def _member(dice: random.Random) -> Details:
    return {"member": dice.choice(("api0", "api1", "drain0", "drain1", "relay0", "reconcile0", "reconcile1"))}


def _all_of(dice: random.Random) -> Details:
    return {"process": dice.choice(OURS)}


def _paused(dice: random.Random) -> Details:
    members = ("api0", "api1", "drain0", "drain1", "relay0", "reconcile0", "reconcile1", "redis", "postgres")
    return {"member": dice.choice(members)}


def _point(dice: random.Random) -> Details:
    point = dice.choice(tuple(POINTS))
    details: Details = {"point": point, "order": dice.choice(ORDERS)}
    if point.startswith("rebuild."):
        details["provoked_by"] = dice.choice(("wiped", "restarted without data"))
    elif point.startswith("bless."):
        details["provoked_by"] = "restarted with data"
    return details


def _link(dice: random.Random) -> Details:
    return {"link": dice.choice(LINKS)}


def _cut(dice: random.Random) -> Details:
    return {"link": dice.choice(LINKS), "way": dice.choice(("up", "down", "both"))}


def _to_postgres(dice: random.Random) -> Details:
    return {"how": dice.choice(("refused", "black hole"))}


def _latency(dice: random.Random) -> Details:
    return {"link": dice.choice(LINKS), "latency_ms": round(dice.uniform(5, 400))}


def _drip(dice: random.Random) -> Details:
    return {"link": dice.choice(LINKS), "bytes_per_s": round(dice.uniform(2_000, 60_000))}


def _held(dice: random.Random) -> Details:
    return {"link": dice.choice(LINKS), "hold_reply_s": round(dice.uniform(0.3, 4.0), 2)}


def _everywhere(dice: random.Random) -> Details:
    return {"latency_ms": round(dice.uniform(5, 60))}


def _split(dice: random.Random) -> Details:
    return {
        "moved": dice.choice(("everybody", "everybody", "api")),
        "stale_s": round(dice.uniform(0.1, 1.5), 2),
    }


def _back(dice: random.Random) -> Details:
    return {**_split(dice), "back_for_s": round(dice.uniform(0.5, 3.0), 2)}


def _clock(dice: random.Random) -> Details:
    size_s = dice.choice((3.0, 30.0, 250.0, 900.0, 7_200.0, 86_400.0))
    return {"member": dice.choice(("api0", "api1")), "offset_s": size_s * dice.choice((-1, 1))}


KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "killed": Kind("process", (0.0, 3.0), _member),
        "all of a kind killed": Kind("process", (0.0, 3.0), _all_of),
        "paused": Kind("process", (0.1, 15.0), _paused),
        "kill point": Kind("point", (0.5, 6.0), _point),
        "second kill point": Kind("point", (0.5, 6.0), _point),
        "redis restarted with data": Kind("redis", (0.0, 0.0), _nothing),
        "redis restarted without data": Kind("redis", (0.0, 0.0), _nothing),
        "redis wiped": Kind("redis", (0.0, 0.0), _nothing),
        "redis scripts flushed": Kind("redis", (0.0, 0.0), _nothing),
        "redis out of memory": Kind("redis", (0.5, 4.0), _nothing),
        "redis from an older copy": Kind("redis", (0.5, 4.0), _nothing),
        "redis failover to a stale replica": Kind("redis", (0.5, 4.0), _split, "replica"),
        "redis old primary comes back": Kind("redis", (0.5, 3.0), _back, "replica"),
        "confirmations lost": Kind("redis", (0.5, 5.0), _nothing),
        "redis disk full": Kind("disk", (0.5, 3.0), _nothing),
        "postgres stopped hard": Kind("postgres", (0.0, 4.0), _nothing),
        "postgres restarted": Kind("postgres", (0.0, 0.0), _nothing),
        "postgres unreachable": Kind("postgres", (0.5, 6.0), _to_postgres),
        "postgres disk full": Kind("disk", (0.5, 3.0), _nothing),
        "link cut": Kind("network", (0.5, 8.0), _cut),
        "connections reset": Kind("network", (0.0, 0.0), _link),
        "connections refused": Kind("network", (0.3, 4.0), _link),
        "link slow": Kind("network", (1.0, 8.0), _latency),
        "link drips": Kind("network", (0.5, 5.0), _drip),
        "replies held back": Kind("network", (0.5, 6.0), _held),
        "everything slow": Kind("network", (1.0, 5.0), _everywhere),
        "clock off": Kind("clock", (3.0, 12.0), _clock, "clocks"),
    }
)
CLASSES: Final = frozenset(kind.fault_class for kind in KINDS.values())


def possible(capabilities: Capabilities) -> list[str]:
    """Names of the kinds that a deployment can carry out, in the table's order."""
    return [name for name, kind in KINDS.items() if not kind.needs or getattr(capabilities, kind.needs)]
