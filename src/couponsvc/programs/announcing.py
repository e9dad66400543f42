"""What partners are told of a drop that changes: outbox rows, in the change's own transaction.

So there is no change without its row, and no row without its change. The relay adds how the drop
stands (`state`) when it numbers the row. The caller holds the row lock of the drop; rows of one drop
are therefore in the order of its changes.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any, Final

from couponsvc.programs.definitions import SQL, Connection, StandingDrop
from couponsvc.values.drop import DropStatus
from couponsvc.values.event import EventType
from couponsvc.values.moment import HOUR_MS, rfc3339

OF_STATUS: Final = {
    DropStatus.ACTIVE: EventType.DROP_RESUMED,
    DropStatus.PAUSED: EventType.DROP_PAUSED,
    DropStatus.CLOSED: EventType.DROP_CLOSED,
}


async def announce_status(connection: Connection, standing: StandingDrop, status: DropStatus) -> None:
    """A drop was paused, resumed or closed."""
    await _announce(connection, OF_STATUS[status], standing.drop.drop_no, {"drop_id": standing.drop.drop_id})


async def announce_restock(connection: Connection, standing: StandingDrop, added_count: int) -> None:
    """Units were added to a drop, which now stands like this."""
    drop = standing.drop
    data = {"drop_id": drop.drop_id, "added": added_count, "quantity": drop.quantity}
    await _announce(connection, EventType.DROP_RESTOCKED, drop.drop_no, data)


async def announce_definition(connection: Connection, standing: StandingDrop) -> None:
    """A drop was defined, or its definition changed, and now stands like this."""
    drop = standing.drop
    data = {
        "drop_id": drop.drop_id,
        "program_id": drop.program_id,
        "template_id": drop.template_id,
        "quantity": drop.quantity,
        "per_person_limit": drop.per_person_limit,
        "opens_at": rfc3339(drop.opens_ms),
        "closes_at": rfc3339(drop.closes_ms),
        "face_value_fen": drop.terms.face_value_fen,
        "min_spend_fen": drop.terms.min_spend_fen,
        "valid_for_hours": drop.terms.valid_for_ms // HOUR_MS,
    }
    await _announce(connection, EventType.DROP_DEFINED, drop.drop_no, data)


async def announce_sold_out(connection: Connection, standing: StandingDrop) -> None:
    """A drop's quantity was lowered to what is issued. Commits tell it themselves."""
    data = {"drop_id": standing.drop.drop_id, "quantity": standing.drop.quantity}
    await _announce(connection, EventType.DROP_SOLD_OUT, standing.drop.drop_no, data)


async def announce_withdrawal(
    connection: Connection, standing: StandingDrop, partner_nos: Collection[int]
) -> None:
    """A drop was taken away from partners, who are told so, each for itself."""
    for partner_no in sorted(partner_nos):
        data = {"drop_id": standing.drop.drop_id}
        await _announce(connection, EventType.DROP_WITHDRAWN, standing.drop.drop_no, data, partner_no)


async def _announce(
    connection: Connection,
    kind: EventType,
    drop_no: int,
    data: Mapping[str, Any],
    partner_no: int | None = None,
) -> None:
    text = json.dumps(data, ensure_ascii=False)
    await connection.execute(SQL["record_event"], kind.value, drop_no, text, partner_no)
