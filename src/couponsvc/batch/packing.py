"""From a batch of tickets to what the gate is asked."""

from collections.abc import Sequence
from typing import NamedTuple

from couponsvc.batch.pace import Pace
from couponsvc.batch.ticket import Ticket
from couponsvc.gate.grabbing import grab_command
from couponsvc.values import wire


class Packed(NamedTuple):
    """One call of the gate."""

    key_names: list[str]
    arguments: list[bytes | int]
    paces: Sequence[Pace]
    """Of the limited partners in the batch, in the order in which the gate tells of their rates."""


def pack(
    tickets: Sequence[Ticket], *, shard: int, origin: str, batch_no: int, backlog_max_count: int
) -> Packed:
    """Keys and arguments that decide `tickets`; `origin` is who waits for the commits, if anybody does."""
    drops: dict[tuple[int, int], int] = {}
    paces: dict[int, Pace] = {}
    rows = []
    waited_for = False
    for ticket in tickets:
        if ticket.confirm:
            waited_for = True
        key = ticket.drop_key
        index = drops.get(key)
        if index is None:
            index = drops[key] = len(drops) + 1
        if ticket.pace is None:
            rows.append(wire.grab_row(index, ticket.grab))
        else:
            rows.append(wire.limited_row(index, ticket.grab, _place_of(ticket.pace, paces)))
    key_names, arguments = grab_command(
        shard,
        wire.encode_origin(origin if waited_for else wire.NOBODY, batch_no),
        list(drops),
        rows,
        backlog_max_count,
        rates={partner_no: pace.rate for partner_no, pace in paces.items()},
    )
    return Packed(key_names, arguments, list(paces.values()))


def _place_of(pace: Pace, paces: dict[int, Pace]) -> int:
    """Which rate of the batch a grab uses, counted from 1; the first grab of its partner brings it."""
    if pace.partner_no not in paces:
        paces[pace.partner_no] = pace
        return len(paces)
    return list(paces).index(pace.partner_no) + 1
