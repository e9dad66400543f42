"""What operators define: programs, voucher templates and drops, as Postgres holds them.

Defining is idempotent: saying the same again changes nothing. What a program or template says is
taken over by a drop when the drop is defined; once a drop is frozen (see `programs.drop_rules`)
later changes of its template no longer reach it.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from couponsvc.ledger.codes import KEY_BYTES, KEY_PURPOSE
from couponsvc.ledger.drops import drop_of
from couponsvc.support.sealing import MasterKey
from couponsvc.support.sql import Queries
from couponsvc.values.drop import Drop, VoucherTerms

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"

SQL: Final = Queries("couponsvc.programs", "definitions")


class Unknown(Exception):
    """A definition names something that does not exist. Nothing was changed.

    `kind` is `program`, `template`, `partner` or `drop`; the message names it.
    """

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"There is no {kind} named {name}.")
        self.kind: Final = kind


class Conflict(Exception):
    """The change would break a promise, or somebody else was faster. Nothing was changed.

    The message says why, and what to do instead.
    """


class Change(NamedTuple):
    """What a definition did."""

    created: bool
    changed: bool
    """True also where it was created."""


@dataclass(frozen=True, slots=True)
class DropDefinition:
    """A drop as an operator wants it; everything else is the service's own bookkeeping."""

    drop_id: str
    program_id: str
    template_id: str
    quantity: int
    per_person_limit: int
    opens_at: datetime
    closes_at: datetime
    partners: frozenset[str]


@dataclass(frozen=True, slots=True)
class StandingDrop:
    """A drop as Postgres holds it at one moment, with its counters."""

    drop: Drop
    partner_ids: tuple[str, ...]
    partner_nos: tuple[int, ...]
    """Of the same partners, in the same order."""
    issued: int
    sold_out_ms: int | None


def standing_drop(row: asyncpg.Record) -> StandingDrop:
    """Read a row of `read_drop` or `read_drops`."""
    return StandingDrop(
        drop=drop_of(row),
        partner_ids=tuple(row["partner_ids"]),
        partner_nos=tuple(row["partners"]),
        issued=row["issued"],
        sold_out_ms=row["sold_out_ms"],
    )


async def record_operation(
    connection: Connection, actor: str, action: str, subject: str, detail: Mapping[str, Any]
) -> None:
    """Write who changed what, in the change's own transaction."""
    await connection.execute(
        SQL["record_operation"], actor, action, subject, json.dumps(detail, ensure_ascii=False)
    )


async def define_program(
    pool: Pool, master_key: MasterKey, actor: str, *, program_id: str, name: str, region: str
) -> tuple[Change, Sequence[tuple[int, int]]]:
    """Create or update a program.

    Returns:
        What changed, and `(shard, drop_no)` of the drops whose region changed with it.
    """
    async with pool.acquire() as connection, connection.transaction():
        found = await connection.fetchrow(SQL["lock_program"], program_id)
        if found is None:
            sealed = master_key.seal(secrets.token_bytes(KEY_BYTES), KEY_PURPOSE)
            if await connection.fetchval(SQL["insert_program"], program_id, name, region, sealed):
                await record_operation(
                    connection, actor, "program.create", program_id, {"name": name, "region": region}
                )
                return Change(created=True, changed=True), ()
            found = await connection.fetchrow(SQL["lock_program"], program_id)
        assert found is not None, "programs are never deleted"  # noqa: S101
        if (found["name"], found["region"]) == (name, region):
            return Change(created=False, changed=False), ()
        await connection.execute(SQL["update_program"], found["program_no"], name, region)
        await record_operation(
            connection, actor, "program.update", program_id, {"name": name, "region": region}
        )
        drops = await connection.fetch(SQL["open_drops_of_program"], found["program_no"])
        return Change(created=False, changed=True), [(row["shard"], row["drop_no"]) for row in drops]


async def define_template(
    pool: Pool, actor: str, *, program_id: str, template_id: str, name: str, terms: VoucherTerms
) -> Change:
    """Create or update a template. Drops take its terms over when they are defined.

    Raises:
        Unknown: no such program.
    """
    wanted = (name, terms.face_value_fen, terms.min_spend_fen, terms.valid_for_ms)
    subject = f"{program_id}/{template_id}"
    detail = dict(zip(("name", "face_value_fen", "min_spend_fen", "valid_for_ms"), wanted, strict=True))
    async with pool.acquire() as connection, connection.transaction():
        program_no = await connection.fetchval(SQL["share_program"], program_id)
        if program_no is None:
            raise Unknown("program", program_id)
        if await connection.fetchval(SQL["insert_template"], program_no, template_id, *wanted):
            await record_operation(connection, actor, "template.create", subject, detail)
            return Change(created=True, changed=True)
        found = await connection.fetchrow(SQL["lock_template"], program_no, template_id)
        assert found is not None, "templates are never deleted"  # noqa: S101
        if tuple(found[1:]) == wanted:
            return Change(created=False, changed=False)
        await connection.execute(SQL["update_template"], program_no, template_id, *wanted)
        await record_operation(connection, actor, "template.update", subject, detail)
        return Change(created=False, changed=True)


async def find_drop(pool: Pool, drop_id: str, partner_no: int | None = None) -> StandingDrop | None:
    """Read a drop from Postgres; None where there is none, or this partner may not see it."""
    async with pool.acquire() as connection:
        drop_no = await connection.fetchval(SQL["find_drop_no"], drop_id, partner_no)
        row = None if drop_no is None else await connection.fetchrow(SQL["read_drop"], drop_no)
    return None if row is None else standing_drop(row)


async def list_drops(
    pool: Pool, *, after: str, limit: int, partner_no: int | None, program_id: str | None
) -> list[StandingDrop]:
    """Read one page of drops in the order of their names, those that this partner may see."""
    async with pool.acquire() as connection:
        found = await connection.fetch(SQL["list_drop_nos"], after, limit, partner_no, program_id)
        rows = await connection.fetch(SQL["read_drops"], [row["drop_no"] for row in found])
    return [standing_drop(row) for row in rows]
