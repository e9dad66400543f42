"""Sorts the grants of a batch by drop and epoch, and puts the answers back beside their entries.

Everything is kept in columns and slices: per grant this costs a list element, not an object.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Final, NamedTuple

from couponsvc.limits import PER_PERSON_LIMIT_MAX
from couponsvc.values.wire import ConfirmationRow, DropEpoch, Entry, Grant, MalformedEntry

SEPARATOR: Final = "\x1f"
"""Unit separator (ASCII 31): joins the values of a column; no value may contain it."""
ASCII_DIGITS: Final = frozenset("0123456789")
NOTHING: Final[frozenset[int]] = frozenset()


class Slice(NamedTuple):
    """Where the grants of one entry lie within their group."""

    entry_index: int
    start: int
    stop: int


class Columns(NamedTuple):
    """Grants turned on their side: one sequence per field, in one order."""

    partners: Sequence[str]
    tokens: Sequence[str]
    numbers: Sequence[str]
    ordinals: Sequence[int]
    places: Sequence[int]
    channels: Sequence[str]
    regions: Sequence[str]


class Group:
    """All grants of a batch for one drop under one epoch, in the order of the stream."""

    __slots__ = ("_pieces", "grants", "key", "slices")

    def __init__(self, key: DropEpoch) -> None:
        self.key = key
        self.grants: list[Grant] = []
        self.slices: list[Slice] = []
        self._pieces: list[Columns] = []

    def add(self, entry_index: int, grants: Sequence[Grant], columns: Columns) -> None:
        """Append what an entry has for this drop."""
        start = len(self.grants)
        self.grants += grants
        self.slices.append(Slice(entry_index, start, len(self.grants)))
        self._pieces.append(columns)

    def columns(self) -> Columns:
        """All grants as columns."""
        if len(self._pieces) == 1:
            return self._pieces[0]
        return Columns(*[list(chain.from_iterable(parts)) for parts in zip(*self._pieces, strict=True)])


class Answers(NamedTuple):
    """What the ledger says of a group's grants, in their order."""

    confirmations: Sequence[ConfirmationRow]
    mended: frozenset[int] = NOTHING
    """Positions whose verdict is HELD by a voucher that stands at the grant's own ordinal, so
    that noting it makes Redis right again."""
    all_committed: bool = False
    """True only where every verdict is COMMITTED, which spares looking at each."""


class SettledPart(NamedTuple):
    """The grants of one entry for one drop, with what the ledger says of them."""

    key: DropEpoch
    grants: Sequence[Grant]
    confirmations: Sequence[ConfirmationRow]
    mended: frozenset[int]
    """As in `Answers`, as positions in `grants`."""
    all_committed: bool = False
    """As in `Answers`."""


class Settled(NamedTuple):
    """One entry whose outcome is known and committed."""

    entry: Entry
    parts: Sequence[SettledPart]


def check_entry(entry: Entry) -> Columns:
    """Refuse an entry that decodes but cannot be meant; else its grants as columns.

    Raises:
        MalformedEntry: it names a drop that it does not carry, a person that is none, an ordinal
            beyond any limit, or text that Postgres cannot keep.
    """
    if not entry.grants:
        raise MalformedEntry(f"stream entry {entry.entry_id} has no grants")
    drop_indexes, columns = _turn(entry.grants)
    partners, tokens, numbers, ordinals, _, channels, regions = columns
    if not all(partners) or not all(tokens) or not ASCII_DIGITS.issuperset("".join(partners)):
        raise MalformedEntry(f"stream entry {entry.entry_id} has a holder that is no person of a partner")
    text = "".join([*tokens, *numbers, *channels, *regions])
    if SEPARATOR in text or "\0" in text:
        raise MalformedEntry(f"stream entry {entry.entry_id} has a control character in it")
    if min(drop_indexes) < 1 or max(drop_indexes) > len(entry.drops):
        raise MalformedEntry(f"stream entry {entry.entry_id} names a drop that it does not carry")
    if min(ordinals) < 1 or max(ordinals) > PER_PERSON_LIMIT_MAX:
        raise MalformedEntry(f"stream entry {entry.entry_id} has an ordinal beyond any limit")
    return columns


def group_entries(entries: Sequence[Entry]) -> list[Group]:
    """Groups of a batch, in order of first appearance.

    Raises:
        MalformedEntry: as `check_entry`.
    """
    groups: dict[DropEpoch, Group] = {}
    for entry_index, entry in enumerate(entries):
        columns = check_entry(entry)
        if len(entry.drops) == 1:  # nearly always
            _group(groups, entry.drops[0]).add(entry_index, entry.grants, columns)
            continue
        buckets: dict[int, list[Grant]] = {}
        for grant in entry.grants:
            buckets.setdefault(grant.drop_index, []).append(grant)
        for drop_index, grants in buckets.items():
            _group(groups, entry.drops[drop_index - 1]).add(entry_index, grants, _turn(grants)[1])
    return list(groups.values())


def assemble(
    entries: Sequence[Entry], groups: Sequence[Group], answers: Mapping[DropEpoch, Answers]
) -> list[Settled]:
    """Put the groups' answers beside the entries they came from."""
    parts: list[list[SettledPart]] = [[] for _ in entries]
    for group in groups:
        confirmations, mended, all_committed = answers[group.key]
        for entry_index, start, stop in group.slices:
            own = frozenset(place - start for place in mended if start <= place < stop) if mended else NOTHING
            parts[entry_index].append(
                SettledPart(
                    group.key, group.grants[start:stop], confirmations[start:stop], own, all_committed
                )
            )
    return [Settled(entry, parts[index]) for index, entry in enumerate(entries)]


def _group(groups: dict[DropEpoch, Group], key: DropEpoch) -> Group:
    group = groups.get(key)
    if group is None:
        group = groups[key] = Group(key)
    return group


def _turn(grants: Sequence[Grant]) -> tuple[Sequence[int], Columns]:
    """Drop indexes, and the columns."""
    drop_indexes, holders, numbers, ordinals, places, channels, regions = zip(*grants, strict=True)
    partners, _, tokens = zip(*[holder.partition(":") for holder in holders], strict=True)
    return drop_indexes, Columns(partners, tokens, numbers, ordinals, places, channels, regions)
