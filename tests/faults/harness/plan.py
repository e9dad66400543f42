"""What will go wrong, and what operators will do, from one number: the same number, the same plan.

Chance alone would leave out some kinds for hundreds of seeds. So neighbouring seeds share a shuffled
deck of all kinds and each takes its part of it: any `seeds_per_deck` seeds that begin at a multiple of
it see every kind. On top of that each seed draws a few more at random.
"""

import random
from typing import Final

import msgspec

from tests.faults.harness.fault_kinds import KINDS, Capabilities, Details, possible

FAULTS_MIN_COUNT: Final = 4
FAULT_EVERY_S: Final = 3.0
"""Of the deck: seven in 20 s. They overlap, and the service still works in between."""
EXTRA_FAULTS_MAX_COUNT: Final = 2
BEGINS_WITHIN: Final = (0.05, 0.8)
"""Of the run: a little normal work before the first fault, and the last one is felt."""

LARGE: Final = "large"
"""Never exhausted: throughput, and vouchers to lose."""
LARGE_SHARE: Final = 0.55
"""Of the crowd, unless it is told otherwise."""
CONTESTED: Final = "contested"
"""More persons than units."""
SEVERAL: Final = "several"
"""A person may hold three."""
RESTOCKED: Final = "restocked"
"""Gets units added, is paused and resumed while people press."""
LOWERED: Final = "lowered"
"""Loses units that nobody was granted yet."""


QUANTITY_MIN_COUNT: Final = 20
LANES_COUNT: Final = 128
"""Persons at a time: batches of some dozens form, and one paused API process cannot hold all of them."""


class CrowdPlan(msgspec.Struct, frozen=True, omit_defaults=True):
    """How many press, and for how much; the usual crowd presses as fast as it is served."""

    lanes_count: int = LANES_COUNT
    """Persons at a time."""
    pause_s: float = 0.0
    """Between two persons of a lane, on average: a machine of few cores then carries more runs at a time."""
    large_share: float = LARGE_SHARE
    """Of the persons, who want the drop that is never exhausted: more of them, more vouchers."""
    stock: float = 1.0
    """Of the usual quantities: what is left after healing is sold out by fresh persons, one by one."""


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """One fault."""

    kind: str
    at_s: float
    lasts_s: float
    details: Details

    def __str__(self) -> str:
        """The kind with its details, as notes and result lines name it."""
        details = " ".join(f"{name}={value}" for name, value in self.details.items())
        return f"{self.kind} {details}".strip()


class DropPlan(msgspec.Struct, frozen=True):
    """One drop."""

    role: str
    drop_id: str
    quantity: int
    per_person_limit: int
    share: float
    """Of the crowd's choices."""


class Change(msgspec.Struct, frozen=True):
    """What an operator does in mid-run."""

    at_s: float
    what: str
    """`restock`, `lower`, `pause` or `resume`."""
    role: str
    units: int = 0


class Plan(msgspec.Struct, frozen=True):
    """One schedule."""

    seed: int
    seconds: float
    faults: list[Fault]
    drops: list[DropPlan]
    changes: list[Change]
    crowd: CrowdPlan = CrowdPlan()

    def drop(self, role: str) -> DropPlan:
        """The drop that plays a role."""
        return next(drop for drop in self.drops if drop.role == role)

    def text(self) -> str:
        """JSON on one line."""
        return msgspec.json.encode(self).decode()


def seeds_per_deck(seconds: float, capabilities: Capabilities) -> int:
    """How many neighbouring seeds see every kind between them."""
    return -(-len(possible(capabilities)) // _own_count(seconds))


def make_plan(seed: int, seconds: float, capabilities: Capabilities) -> Plan:
    """Make the schedule of a seed; pure."""
    dice = random.Random(f"plan {seed}")  # noqa: S311 - a schedule is no secret
    kinds = _kinds(dice, seed, seconds, capabilities)
    faults = sorted((_fault(dice, kind, seconds) for kind in kinds), key=lambda fault: fault.at_s)
    return Plan(seed, seconds, faults, _drops(dice, seed, seconds), _changes(dice, seconds))


def make_counted_plan(seed: int, kind: str, times: int, every_s: float) -> Plan:
    """One kind of fault again and again, at even distances, each lasting at most half of one; pure."""
    dice = random.Random(f"counted {seed} {kind}")  # noqa: S311
    seconds = (times + 1) * every_s
    faults = []
    for place in range(times):
        lasts_s = min(dice.uniform(*KINDS[kind].lasts_s), every_s / 2)
        faults.append(
            Fault(kind, round((place + 0.5) * every_s, 2), round(lasts_s, 2), KINDS[kind].details(dice))
        )
    return Plan(seed, seconds, faults, _drops(dice, seed, seconds), _changes(dice, seconds))


def with_crowd(plan: Plan, crowd: CrowdPlan) -> Plan:
    """Have another crowd press; pure."""
    if crowd == CrowdPlan():
        return plan
    others = sum(drop.share for drop in plan.drops if drop.role != LARGE)
    rest = (1 - crowd.large_share) / others
    drops = [
        msgspec.structs.replace(drop, share=crowd.large_share)
        if drop.role == LARGE
        else msgspec.structs.replace(
            drop,
            share=round(drop.share * rest, 4),
            quantity=max(QUANTITY_MIN_COUNT, round(drop.quantity * crowd.stock)),
        )
        for drop in plan.drops
    ]
    return msgspec.structs.replace(plan, drops=drops, crowd=crowd)


def _own_count(seconds: float) -> int:
    return max(FAULTS_MIN_COUNT, round(seconds / FAULT_EVERY_S))


def _kinds(dice: random.Random, seed: int, seconds: float, capabilities: Capabilities) -> list[str]:
    deck = possible(capabilities)
    share = seeds_per_deck(seconds, capabilities)
    random.Random(f"deck {seed // share}").shuffle(deck)  # noqa: S311
    own = deck[seed % share :: share]
    wanted_count = max(_own_count(seconds) - len(own), 0) + dice.randint(0, EXTRA_FAULTS_MAX_COUNT)
    return own + dice.choices(possible(capabilities), k=wanted_count)


def _fault(dice: random.Random, name: str, seconds: float) -> Fault:
    kind = KINDS[name]
    at_s = dice.uniform(*BEGINS_WITHIN) * seconds
    lasts_s = min(dice.uniform(*kind.lasts_s), seconds - at_s)
    return Fault(name, round(at_s, 2), round(lasts_s, 2), kind.details(dice))


def _drops(dice: random.Random, seed: int, seconds: float) -> list[DropPlan]:
    """Small enough that the contested ones can sell out while faults are planted."""
    size = seconds / 20.0

    def drop(role: str, least: int, most: int, limit: int, share: float) -> DropPlan:
        quantity = max(QUANTITY_MIN_COUNT, round(dice.randint(least, most) * size))
        return DropPlan(role, f"s{seed}-{role}", quantity, limit, share)

    return [
        DropPlan(LARGE, f"s{seed}-{LARGE}", 1_000_000, 1, LARGE_SHARE),
        drop(CONTESTED, 500, 3_000, 1, 0.15),
        drop(SEVERAL, 500, 3_000, dice.choice((2, 3)), 0.15),
        drop(RESTOCKED, 100, 1_000, 1, 0.1),
        drop(LOWERED, 400, 1_500, 1, 0.05),
    ]


def _changes(dice: random.Random, seconds: float) -> list[Change]:
    """Three times more stock, one pause or two, one or two times less stock: all at random moments."""

    def at(least: float, most: float) -> float:
        return round(dice.uniform(least, most) * seconds, 2)

    changes = [Change(at(0.1, 0.95), "restock", RESTOCKED, dice.randint(10, 400)) for _ in range(3)]
    for role in (RESTOCKED, *dice.sample((CONTESTED, SEVERAL), k=dice.randint(0, 1))):
        paused_at_s = at(0.1, 0.8)
        resumed_at_s = min(paused_at_s + dice.uniform(0.3, 3.0), 0.98 * seconds)
        changes += [Change(paused_at_s, "pause", role), Change(round(resumed_at_s, 2), "resume", role)]
    changes += [
        Change(at(0.1, 0.9), "lower", LOWERED, dice.randint(20, 150)) for _ in range(dice.randint(1, 2))
    ]
    return sorted(changes, key=lambda change: change.at_s)
