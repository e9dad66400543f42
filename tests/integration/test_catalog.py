"""The catalog: reads what moved, and everything once in a while."""

from collections.abc import Mapping, Sequence

import asyncpg
import pytest

from couponsvc.ledger.drops import DropMark, load_drops, mark_drops
from couponsvc.programs import catalog as catalog_module
from couponsvc.programs.catalog import DropCatalog
from couponsvc.values.drop import Drop
from tests.integration.scene import make_drop


class Ledger:
    """Postgres, and a record of the definitions that were read from it."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self.pool = pool
        self.read: list[Sequence[str]] = []

    async def load(self, drop_ids: Sequence[str]) -> Sequence[Drop]:
        self.read.append(sorted(drop_ids))
        return await load_drops(self.pool, drop_ids)

    async def mark(self) -> Mapping[str, DropMark]:
        return await mark_drops(self.pool)


@pytest.fixture
async def ledger(pool: "asyncpg.Pool[asyncpg.Record]", monkeypatch: pytest.MonkeyPatch) -> Ledger:
    monkeypatch.setattr(catalog_module, "TURNS_COUNT", 2_000)  # no drop has its turn
    await pool.execute("ALTER TABLE drops ALTER COLUMN drop_no RESTART WITH 1000")
    for name in ("a", "b", "c"):
        await make_drop(pool, f"drop-{name}")
    return Ledger(pool)


@pytest.fixture
async def catalog(ledger: Ledger) -> DropCatalog:
    catalog = DropCatalog(ledger.load, ledger.mark, 0)
    await catalog.refresh_moved()
    return catalog


async def test_definitions_are_read_once_and_then_only_marked(ledger: Ledger, catalog: DropCatalog) -> None:
    assert ledger.read == [["drop-a", "drop-b", "drop-c"]]
    for _ in range(3):
        await catalog.refresh_moved()
    assert len(ledger.read) == 1
    assert [catalog.get(f"drop-{n}") is not None for n in "abcd"] == [True, True, True, False]


@pytest.mark.parametrize("column", ["version", "epoch"])
async def test_a_drop_that_moved_is_read_and_no_other(
    ledger: Ledger, catalog: DropCatalog, column: str
) -> None:
    await ledger.pool.execute(
        f"UPDATE drops SET {column} = {column} + 1, quantity = 77 WHERE drop_id = 'drop-b'"
    )
    await catalog.refresh_moved()
    assert ledger.read[1:] == [["drop-b"]]
    listing = catalog.get("drop-b")
    assert listing is not None
    assert listing.drop.quantity == 77


async def test_a_new_region_of_a_program_is_read_for_its_drops(ledger: Ledger, catalog: DropCatalog) -> None:
    await ledger.pool.execute("UPDATE programs SET region = '110000'")
    await catalog.refresh_moved()
    assert ledger.read[1:] == [["drop-a", "drop-b", "drop-c"]]
    assert [getattr(catalog.get(f"drop-{n}"), "region_prefix", "") for n in "abc"] == ["11"] * 3


async def test_a_new_drop_is_known_without_any_message(ledger: Ledger, catalog: DropCatalog) -> None:
    await make_drop(ledger.pool, "drop-d")
    await catalog.refresh_moved()
    assert ledger.read[1:] == [["drop-d"]]
    assert catalog.get("drop-d") is not None


async def test_what_was_changed_by_hand_is_read_at_its_turn(
    ledger: Ledger, catalog: DropCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_module, "TURNS_COUNT", 3)
    await ledger.pool.execute("UPDATE drops SET quantity = 77")  # and no version
    for _ in range(3):
        await catalog.refresh_moved()
    assert sorted(name for names in ledger.read[1:] for name in names) == ["drop-a", "drop-b", "drop-c"]
    assert [getattr(catalog.get(f"drop-{n}"), "drop").quantity for n in "abc"] == [77] * 3  # noqa: B009


async def test_many_definitions_are_read_in_portions(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "LOAD_MAX_COUNT", 2)
    catalog = DropCatalog(ledger.load, ledger.mark, 0)
    await catalog.refresh_moved()
    assert sorted(map(len, ledger.read)) == [1, 2]
    assert all(catalog.get(f"drop-{n}") for n in "abc")
