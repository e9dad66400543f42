"""`couponsvc apply`: bring a running service to what a program file says, and tell what changed.

Works over the HTTP API only, so it runs wherever the API can be reached. Order: program, then
templates, then drops, because each names the one before. Every step is idempotent; a run that
was cut off is simply run again.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from couponsvc.client import ApiClient
from couponsvc.programs.program_file import DropSpec, ProgramFile, TemplateSpec
from couponsvc.values.moment import rfc3339, unix_ms

CREATED: Final = "created"
UPDATED: Final = "updated"
UNCHANGED: Final = "unchanged"
_TAKEN_OVER: Final = ("face_value_fen", "min_spend_fen", "valid_for_hours")
"""Terms that a drop takes over from its template when it is defined again: they too may change."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to define: where it lives, what to send."""

    what: str
    """For people: `drop qingdao-2022-wed-dining-20`."""
    path: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of one item."""

    what: str
    change: str
    """`created`, `updated` or `unchanged`."""
    fields: tuple[str, ...]
    """Where updated: `name: old → new`."""

    def __str__(self) -> str:
        return f"{self.change:<9}  {self.what}" + (f"  ({'; '.join(self.fields)})" if self.fields else "")


def items_of(file: ProgramFile) -> Iterator[Item]:
    """Everything a file defines, in the order in which it must be created."""
    program = file.program
    base = f"/v1/programs/{program.program_id}"
    yield Item(f"program {program.program_id}", base, {"name": program.name, "region": program.region})
    for template in file.templates:
        yield Item(
            f"template {template.template_id}",
            f"{base}/templates/{template.template_id}",
            _template_body(template),
        )
    for drop in file.drops:
        yield Item(f"drop {drop.drop_id}", f"/v1/drops/{drop.drop_id}", _drop_body(program.program_id, drop))


def apply_program(api: ApiClient, file: ProgramFile, tell: Callable[[Applied], None]) -> list[Applied]:
    """Define everything in `file`; `tell` hears of each item as soon as it is done.

    Raises:
        ApiRefused: the service refuses an item (a change that would break a promise, a partner
            that was not admitted, a token without the scope); items told of before it stand.
        Unreachable: the service cannot be reached.
    """
    done: list[Applied] = []
    for item in items_of(file):
        before = api.find(item.path)
        status, after = api.put(item.path, dict(item.body))
        applied = _compare(item, status, before, after)
        done.append(applied)
        tell(applied)
    return done


def summary(done: Sequence[Applied]) -> str:
    """One line over all items: `nothing changed`, or how many of what."""
    counts = Counter(applied.change for applied in done)
    if counts[UNCHANGED] == len(done):
        return "nothing changed"
    return ", ".join(
        f"{counts[change]} {change}" for change in (CREATED, UPDATED, UNCHANGED) if counts[change]
    )


def _compare(item: Item, status: int, before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> Applied:
    if status == 201 or before is None:  # noqa: PLR2004 - 201 Created
        return Applied(item.what, CREATED, ())
    fields = tuple(
        f"{name}: {_shown(before.get(name))} → {_shown(after.get(name))}"
        for name in (*item.body, *(_TAKEN_OVER if "template_id" in item.body else ()))
        if _comparable(before.get(name)) != _comparable(after.get(name))
    )
    return Applied(item.what, UPDATED if fields else UNCHANGED, fields)


def _comparable(value: object) -> object:
    """Forget the order of partners: the service keeps a set."""
    return sorted(value) if isinstance(value, list) else value


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _template_body(template: TemplateSpec) -> dict[str, Any]:
    return {
        "name": template.name,
        "face_value_fen": template.face_value_fen,
        "min_spend_fen": template.min_spend_fen,
        "valid_for_hours": template.valid_for_hours,
    }


def _drop_body(program_id: str, drop: DropSpec) -> dict[str, Any]:
    return {
        "program_id": program_id,
        "template_id": drop.template_id,
        "quantity": drop.quantity,
        "per_person_limit": drop.per_person_limit,
        "opens_at": _moment(drop.opens_at),
        "closes_at": _moment(drop.closes_at),
        "partners": sorted(drop.partners),
    }


def _moment(moment: datetime) -> str:
    return rfc3339(unix_ms(moment))
