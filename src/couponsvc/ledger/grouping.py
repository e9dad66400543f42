"""Sorts the grants of a batch by drop and epoch, and puts the answers back beside their entries.

Everything is kept in columns and slices: per grant this costs a list element, not an object.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from couponsvc.limits import PER_PERSON_LIMIT_MAX
from couponsvc.values.wire import Confirmation, DropEpoch, Entry, Grant, MalformedEntry

SEPARATOR: Final = "\x1f"
"""Unit separator (ASCII 31): joins the values of a column; no value may contain it."""
ASCII_DIGITS: Final = frozenset("0123456789")


class Slice(NamedTuple):
    """Where the grants of one entry lie within their group."""

    entry_index: int
    start: int
    stop: int


class Group:
    """All grants of a batch for one drop under one epoch, in the order of the stream."""

    __slots__ = ("grants", "key", "slices")

    def __init__(self, key: DropEpoch) -> None:
        self.key = key
        self.grants: list[Grant] = []
        self.slices: list[Slice] = []


class Answers(NamedTuple):
    """What the ledger says of a group's grants, in their order."""

    confirmations: Sequence[Confirmation]
    mended: frozenset[int] = frozenset()
    """Positions whose verdict is HELD by a voucher that stands at the grant's own ordinal, so
    that noting it makes Redis right again."""


class SettledPart(NamedTuple):
    """The grants of one entry for one drop, with what the ledger says of them."""

    key: DropEpoch
    grants: Sequence[Grant]
    confirmations: Sequence[Confirmation]
    mended: frozenset[int]
    """As in `Answers`, as positions in `grants`."""


class Settled(NamedTuple):
    """One entry whose outcome is known and committed."""

    entry: Entry
    parts: Sequence[SettledPart]


def check_entry(entry: Entry) -> None:
    """Refuse an entry that decodes but cannot be meant.

    Raises:
        MalformedEntry: it names a drop that it does not carry, a person that is none, an ordinal
            beyond any limit, or text that Postgres cannot keep.
    """
    if not entry.grants:
        raise MalformedEntry(f"stream entry {entry.entry_id} has no grants")
    drop_indexes, holders, numbers, ordinals, _, channels, regions = zip(*entry.grants, strict=True)
    partners, _, tokens = zip(*[holder.partition(":") for holder in holders], strict=True)
    if not all(partners) or not all(tokens) or not ASCII_DIGITS.issuperset("".join(partners)):
        raise MalformedEntry(f"stream entry {entry.entry_id} has a holder that is no person of a partner")
    text = "".join([*holders, *numbers, *channels, *regions])
    if SEPARATOR in text or "\0" in text:
        raise MalformedEntry(f"stream entry {entry.entry_id} has a control character in it")
    if min(drop_indexes) < 1 or max(drop_indexes) > len(entry.drops):
        raise MalformedEntry(f"stream entry {entry.entry_id} names a drop that it does not carry")
    if min(ordinals) < 1 or max(ordinals) > PER_PERSON_LIMIT_MAX:
        raise MalformedEntry(f"stream entry {entry.entry_id} has an ordinal beyond any limit")


def group_entries(entries: Sequence[Entry]) -> list[Group]:
    """Groups of a batch, in order of first appearance."""
    groups: dict[DropEpoch, Group] = {}
    for entry_index, entry in enumerate(entries):
        for key, grants in _by_drop(entry):
            group = groups.get(key)
            if group is None:
                group = groups[key] = Group(key)
            start = len(group.grants)
            group.grants += grants
            group.slices.append(Slice(entry_index, start, len(group.grants)))
    return list(groups.values())


def assemble(
    entries: Sequence[Entry], groups: Sequence[Group], answers: Mapping[DropEpoch, Answers]
) -> list[Settled]:
    """Put the groups' answers beside the entries they came from."""
    parts: list[list[SettledPart]] = [[] for _ in entries]
    for group in groups:
        confirmations, mended = answers[group.key]
        for entry_index, start, stop in group.slices:
            parts[entry_index].append(
                SettledPart(
                    group.key,
                    group.grants[start:stop],
                    confirmations[start:stop],
                    frozenset(place - start for place in mended if start <= place < stop),
                )
            )
    return [Settled(entry, parts[index]) for index, entry in enumerate(entries)]


def _by_drop(entry: Entry) -> list[tuple[DropEpoch, Sequence[Grant]]]:
    """The entry's grants per drop; nearly always it has one."""
    if len(entry.drops) == 1:
        return [(entry.drops[0], entry.grants)]
    buckets: dict[int, list[Grant]] = {}
    for grant in entry.grants:
        buckets.setdefault(grant.drop_index, []).append(grant)
    return [(entry.drops[drop_index - 1], grants) for drop_index, grants in buckets.items()]
