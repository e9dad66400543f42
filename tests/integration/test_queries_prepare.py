"""Every named query prepares on the migrated schema; look-ups use the index they are meant to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg

import couponsvc
from couponsvc.support.sql import Queries

SOURCE = Path(couponsvc.__file__).parent
FILES = sorted(SOURCE.glob("*/sql/*.sql"))
QUERIES = {
    f"{path.parent.parent.name}/{path.stem}:{query.name}": query
    for path in FILES
    for query in Queries(f"couponsvc.{path.parent.parent.name}", path.stem).all()
}

ROWS = """
INSERT INTO vouchers (drop_no, seq, partner_no, ordinal, issued_at, person_token, out_request_no, code)
SELECT d, n, 1 + n % 3, 1, now(), 'p' || n, 'n' || d || '-' || n, 'C'
FROM generate_series(1, 5) d, generate_series(1, 2000) n
"""
PARTNERS = (
    "INSERT INTO partners (partner_id, name) SELECT 'partner-' || n, 'P' FROM generate_series(1, 300) n"
)


async def test_every_query_prepares_and_returns_what_its_shape_says(
    pool: "asyncpg.Pool[asyncpg.Record]",
) -> None:
    wrong: list[str] = []
    async with pool.acquire() as connection:
        for name, query in QUERIES.items():
            try:
                statement = await connection.prepare(query.sql)
            except asyncpg.PostgresError as error:
                wrong.append(f"{name}: {error}")
                continue
            if query.shape != "execute" and not statement.get_attributes():
                wrong.append(f"{name} is :{query.shape} and returns nothing")
    assert len(QUERIES) > 10
    assert not wrong, "\n".join(wrong)


LOOK_UPS: dict[str, tuple[Sequence[object], str]] = {
    "find_by_requests": (([1, 2], ["n1-1", "n1-2"]), "vouchers_one_per_request"),
    "find_by_persons": (([1, 2], [1, 2], ["p1", "p2"]), "vouchers_person_limit"),
    "find_voucher": ((1, 17), "vouchers_pkey"),
    "find_by_person": ((1, "p1", 2, 10), "vouchers_person_limit"),
    "find_by_person_of_any_partner": ((1, "p1", 10), "vouchers_person_limit"),
    "page": ((1, 100, 500), "vouchers_pkey"),
}


def scans_of_vouchers(node: dict[str, Any]) -> list[str]:
    """How a plan reads the vouchers: names of indexes, or kinds of scans without one."""
    own = [node.get("Index Name", node["Node Type"])] if node.get("Relation Name") == "vouchers" else []
    return own + [scan for child in node.get("Plans", ()) for scan in scans_of_vouchers(child)]


async def test_look_ups_read_vouchers_by_the_intended_index_alone(
    pool: "asyncpg.Pool[asyncpg.Record]",
) -> None:
    async with pool.acquire() as connection:
        await connection.execute(ROWS)
        await connection.execute(PARTNERS)
        await connection.execute("ANALYZE vouchers, partners")
        for name, (arguments, index) in LOOK_UPS.items():
            for mode in ("force_custom_plan", "force_generic_plan"):  # a server switches by itself
                await connection.execute(f"SET plan_cache_mode = {mode}")
                statement = await connection.prepare(Queries("couponsvc.ledger", "reading")[name])
                explained = await statement.explain(*arguments)
                assert scans_of_vouchers(explained[0]["Plan"]) == [index], (name, mode, explained)


async def test_every_reading_query_has_its_plan_checked() -> None:
    assert {query.name for query in Queries("couponsvc.ledger", "reading").all()} == set(LOOK_UPS)
