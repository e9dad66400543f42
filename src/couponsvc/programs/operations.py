"""What operators do to drops: define, pause, resume, close, restock.

Postgres holds the row lock of the drop for the whole change, so that two operators never lose
each other's update and no voucher is issued in between. What widens a promise (more stock, a
longer window) is committed in Postgres first and then told to the gate; a lower quantity is taken
from the gate first, inside the transaction, because only the gate knows what nobody was granted.
Redis may miss what Postgres has committed; telling it again is harmless (versions), and the
reconciler does so.
"""

from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis

from couponsvc.programs import announcing
from couponsvc.programs.definitions import (
    SQL,
    Change,
    Conflict,
    Connection,
    DropDefinition,
    Pool,
    StandingDrop,
    Unknown,
    record_operation,
    standing_drop,
)
from couponsvc.programs.drop_rules import Plan, plan_change
from couponsvc.programs.telling import now_ms, take_from_gate, tell_gate
from couponsvc.support.kill_points import kill_point
from couponsvc.values.drop import DropStatus, VoucherTerms
from couponsvc.values.voucher import MAX_NUMBER

_AFTER_CHANGE: Final = kill_point("operate.after_change")
_AFTER_TAKING: Final = kill_point("operate.after_taking")


@dataclass(frozen=True, slots=True)
class Operator:
    """Who changes a drop, and on which engines."""

    pool: Pool
    redis: Redis
    shard: int
    actor: str
    """`key_id` of the credential, or `cli`."""


async def define_drop(operator: Operator, wanted: DropDefinition) -> Change:
    """Create or update a drop.

    Raises:
        Unknown: program, template or a partner does not exist.
        Conflict: the change would break a promise.
        GateRebuilding: a lower quantity cannot be judged at present.
        GateAway: Redis does not answer.
    """
    moment_ms = await now_ms(operator.redis)
    async with operator.pool.acquire() as connection, connection.transaction():
        program_no, template_terms = await _resolve_template(connection, wanted)
        partner_nos = await _resolve_partners(connection, wanted.partners)
        drop_no = await connection.fetchval(SQL["lock_drop"], wanted.drop_id)
        created = False
        if drop_no is None:
            drop_no = await _insert_drop(connection, operator.shard, wanted, program_no, template_terms)
            created = drop_no is not None
        if drop_no is None:  # somebody else created it a moment ago
            drop_no = await connection.fetchval(SQL["lock_drop"], wanted.drop_id)
        if created:
            await connection.execute(SQL["admit_partners"], drop_no, partner_nos)
            await record_operation(connection, operator.actor, "drop.create", wanted.drop_id, _detail(wanted))
            standing, plan = await _read(connection, drop_no), None
            await announcing.announce_definition(connection, standing)
        else:
            standing = await _read(connection, drop_no)
            plan = plan_change(standing, wanted, template_terms, moment_ms)
            if plan.fields:
                standing = await _update(
                    operator, connection, standing, wanted, plan, program_no, partner_nos
                )
    fresh = created or (plan is not None and plan.bumps_epoch)
    await tell_gate(operator.redis, standing.drop, fresh=fresh)
    return Change(created, created or bool(plan and plan.fields))


async def set_status(operator: Operator, drop_id: str, status: DropStatus) -> Change:
    """Pause, resume or close a drop; what it is already is no change. Closing is for good.

    Raises:
        Unknown: no such drop.
        Conflict: the drop is closed.
        GateAway: recorded, but Redis does not answer.
    """
    async with operator.pool.acquire() as connection, connection.transaction():
        standing = await _lock(connection, drop_id)
        changed = standing.drop.status is not status
        if changed:
            if standing.drop.status is DropStatus.CLOSED:
                raise Conflict(f"Drop {drop_id} is closed for good; define a new drop.")
            drop_no = standing.drop.drop_no
            await connection.execute(SQL["set_status"], drop_no, int(status))
            await record_operation(connection, operator.actor, announcing.OF_STATUS[status], drop_id, {})
            await announcing.announce_status(connection, standing, status)
            standing = await _read(connection, drop_no)
    _AFTER_CHANGE()
    await tell_gate(operator.redis, standing.drop)
    return Change(created=False, changed=changed)


async def restock(operator: Operator, drop_id: str, *, current_quantity: int, add: int) -> Change:
    """Add stock to a drop whose quantity is `current_quantity` (compare-and-set).

    Raises:
        Unknown: no such drop.
        Conflict: the quantity moved on, the drop is closed, or the sum is too large.
        GateAway: recorded, but Redis does not answer.
    """
    async with operator.pool.acquire() as connection, connection.transaction():
        standing = await _lock(connection, drop_id)
        drop = standing.drop
        if drop.quantity != current_quantity:
            raise Conflict(
                f"The quantity of drop {drop_id} is {drop.quantity}, not {current_quantity}: it was changed "
                "meanwhile, or this restock arrived before. Read the drop, then decide again."
            )
        if drop.status is DropStatus.CLOSED:
            raise Conflict(f"Drop {drop_id} is closed for good; define a new drop.")
        quantity = drop.quantity + add
        if quantity > MAX_NUMBER:
            raise Conflict(f"A drop holds at most {MAX_NUMBER} vouchers.")
        await connection.execute(SQL["set_quantity"], drop.drop_no, quantity)
        detail = {"drop_id": drop_id, "added": add, "quantity": quantity}
        await record_operation(connection, operator.actor, "drop.restocked", drop_id, detail)
        standing = await _read(connection, drop.drop_no)
        await announcing.announce_restock(connection, standing, add)
    _AFTER_CHANGE()
    await tell_gate(operator.redis, standing.drop)
    return Change(created=False, changed=True)


async def _resolve_template(connection: Connection, wanted: DropDefinition) -> tuple[int, VoucherTerms]:
    program_no = await connection.fetchval(SQL["share_program"], wanted.program_id)
    if program_no is None:
        raise Unknown("program", wanted.program_id)
    template = await connection.fetchrow(SQL["share_template"], program_no, wanted.template_id)
    if template is None:
        raise Unknown("template", f"{wanted.program_id}/{wanted.template_id}")
    return program_no, VoucherTerms(
        template["face_value_fen"], template["min_spend_fen"], template["valid_for_ms"]
    )


async def _resolve_partners(connection: Connection, partners: frozenset[str]) -> list[int]:
    rows = await connection.fetch(SQL["number_partners"], sorted(partners))
    unknown = sorted(partners - {row["partner_id"] for row in rows})
    if unknown:
        raise Unknown("partner", ", ".join(unknown))
    return sorted(row["partner_no"] for row in rows)


async def _insert_drop(
    connection: Connection, shard: int, wanted: DropDefinition, program_no: int, terms: VoucherTerms
) -> int | None:
    drop_no: int | None = await connection.fetchval(
        SQL["insert_drop"],
        wanted.drop_id,
        program_no,
        wanted.template_id,
        shard,
        wanted.quantity,
        wanted.per_person_limit,
        wanted.opens_at,
        wanted.closes_at,
        terms.face_value_fen,
        terms.min_spend_fen,
        terms.valid_for_ms,
    )
    return drop_no


async def _update(  # noqa: PLR0917 - one step of define_drop, cut out to be read by itself
    operator: Operator,
    connection: Connection,
    standing: StandingDrop,
    wanted: DropDefinition,
    plan: Plan,
    program_no: int,
    partner_nos: list[int],
) -> StandingDrop:
    """Write a planned change; a lower quantity is taken from the gate before the commit."""
    drop_no = standing.drop.drop_no
    await connection.execute(
        SQL["update_drop"],
        drop_no,
        program_no,
        wanted.template_id,
        wanted.quantity,
        wanted.per_person_limit,
        wanted.opens_at,
        wanted.closes_at,
        plan.terms.face_value_fen,
        plan.terms.min_spend_fen,
        plan.terms.valid_for_ms,
        plan.bumps_epoch,
    )
    await _replace_partners(connection, standing, partner_nos)
    detail = {"changed": list(plan.fields), **_detail(wanted)}
    await record_operation(connection, operator.actor, "drop.update", wanted.drop_id, detail)
    changed = await _read(connection, drop_no)
    await announcing.announce_definition(connection, changed)
    if plan.quantity_step > 0:
        await announcing.announce_restock(connection, changed, plan.quantity_step)
    if changed.sold_out_ms is not None and standing.sold_out_ms is None:
        await announcing.announce_sold_out(connection, changed)
    if plan.quantity_step < 0 and not plan.bumps_epoch:
        await take_from_gate(operator.redis, changed.drop, -plan.quantity_step)
        _AFTER_TAKING()
    return changed


async def _replace_partners(connection: Connection, standing: StandingDrop, partner_nos: list[int]) -> None:
    drop = standing.drop
    leaving = sorted(drop.partners - set(partner_nos))
    holding = await connection.fetch(SQL["holding_partners"], drop.drop_no, leaving) if leaving else []
    if holding:
        names = ", ".join(row["partner_id"] for row in holding)
        raise Conflict(f"Partners hold vouchers of drop {drop.drop_id} and cannot leave it: {names}.")
    await connection.execute(SQL["expel_partners"], drop.drop_no, leaving)
    await announcing.announce_withdrawal(connection, standing, leaving)
    await connection.execute(SQL["admit_partners"], drop.drop_no, partner_nos)


async def _lock(connection: Connection, drop_id: str) -> StandingDrop:
    drop_no = await connection.fetchval(SQL["lock_drop"], drop_id)
    if drop_no is None:
        raise Unknown("drop", drop_id)
    return await _read(connection, drop_no)


async def _read(connection: Connection, drop_no: int) -> StandingDrop:
    row = await connection.fetchrow(SQL["read_drop"], drop_no)
    assert row is not None, "drops are never deleted"  # noqa: S101
    return standing_drop(row)


def _detail(wanted: DropDefinition) -> dict[str, Any]:
    return {
        "program_id": wanted.program_id,
        "template_id": wanted.template_id,
        "quantity": wanted.quantity,
        "per_person_limit": wanted.per_person_limit,
        "opens_at": wanted.opens_at.isoformat(),
        "closes_at": wanted.closes_at.isoformat(),
        "partners": sorted(wanted.partners),
    }
