"""Migrations: from empty to the committed schema, once, by one at a time, never backwards."""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from couponsvc.ledger import migrate as module
from couponsvc.ledger.migrate import Migration, SchemaRefused, known_migrations, migrate, pending
from couponsvc.support.postgres import open_pool
from tests.catalog import describe

COMMITTED_SCHEMA = Path(__file__).parents[1] / "contract" / "committed_schema.txt"
NAMES = [migration.name for migration in known_migrations()]


async def schema_of(dsn: str) -> str:
    connection = await asyncpg.connect(dsn)
    try:
        return await describe(connection)
    finally:
        await connection.close()


def change_the_files(monkeypatch: pytest.MonkeyPatch, *migrations: Migration) -> None:
    monkeypatch.setattr(module, "known_migrations", lambda: migrations)


async def test_migrations_from_empty_equal_the_committed_schema(empty_database: str) -> None:
    """After a new migration: write the text anew with `python -m tests.catalog DSN` and read the diff."""
    assert await migrate(empty_database) == NAMES
    assert await schema_of(empty_database) == COMMITTED_SCHEMA.read_text("utf-8")


async def test_migrating_again_applies_nothing(database: str) -> None:
    assert await migrate(database) == []


async def test_of_many_migrators_one_does_the_work(empty_database: str) -> None:
    applied = await asyncio.gather(*(migrate(empty_database) for _ in range(4)))
    assert sorted(applied, key=len) == [[], [], [], NAMES]


async def test_pending_names_what_is_missing_and_writes_nothing(empty_database: str) -> None:
    pool = await open_pool(empty_database, max_size=1)
    assert await pending(pool) == NAMES
    assert not await pool.fetchval("SELECT to_regclass('schema_migrations') IS NOT NULL")
    await migrate(empty_database)
    assert await pending(pool) == []
    await pool.close()


async def test_a_new_file_is_applied_to_an_old_database(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = Migration(len(NAMES) + 1, f"{len(NAMES) + 1:04d}_more", "CREATE TABLE more (n integer)", "0" * 64)
    change_the_files(monkeypatch, *known_migrations(), new)
    assert await migrate(database) == [new.name]
    assert "\nmore\n  n integer\n" in await schema_of(database)


async def test_a_migration_that_fails_leaves_nothing_behind(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await schema_of(database)
    bad = Migration(len(NAMES) + 1, "9999_bad", "CREATE TABLE more (n integer); SELECT 1 / 0", "0" * 64)
    change_the_files(monkeypatch, *known_migrations(), bad)
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(database)
    assert await schema_of(database) == before
    monkeypatch.undo()
    assert await migrate(database) == []


async def test_a_changed_file_is_refused_by_name(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *rest = known_migrations()
    changed = Migration(first.version, first.name, first.sql + "--", "f" * 64)
    change_the_files(monkeypatch, changed, *rest)
    with pytest.raises(SchemaRefused, match=f"{first.name} was changed after it was applied"):
        await migrate(database)


async def test_a_newer_database_is_refused(database: str) -> None:
    known = known_migrations()
    connection = await asyncpg.connect(database)
    await connection.execute(
        "INSERT INTO schema_migrations VALUES ($1, '9999_future', 'x', now())", len(known) + 1
    )
    await connection.close()
    with pytest.raises(SchemaRefused, match=r"9999_future.*run the newer version"):
        await migrate(database)


@pytest.mark.parametrize("names", [["0002_late.sql"], ["0001_a.sql", "0001_b.sql"], ["1_short.sql"]])
def test_a_gap_or_a_twin_among_the_files_is_refused(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in names:
        (tmp_path / name).write_text("SELECT 1")
    monkeypatch.setattr(module, "_folder", lambda: tmp_path)
    with pytest.raises(SchemaRefused, match=names[-1]):
        known_migrations.__wrapped__()


def test_every_migration_bounds_its_wait_for_locks() -> None:
    for migration in known_migrations():
        statements = [line for line in migration.sql.splitlines() if line and not line.startswith("--")]
        assert statements[0].startswith("SET LOCAL lock_timeout"), migration.name
