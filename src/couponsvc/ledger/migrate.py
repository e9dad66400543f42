"""Brings a database to the schema that this version knows, forwards only.

Migrations are `NNNN_what.sql`, append-only, one transaction each. The database
remembers name and checksum of every one it has seen, so that a file that was
changed afterwards, or a database that is newer than the program, is refused
instead of guessed at.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

import asyncpg

from couponsvc.support.sql import Queries

LOCK_KEY: Final = 0x636F75706F6E  # "coupon" in ASCII: any number that no other program picks
CONNECT_TIMEOUT_S: Final = 10.0
"""A migrator often starts together with its server; this is how long one attempt may take."""

_FILE_NAME = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")
_queries = Queries("couponsvc.ledger", "migrate")


class SchemaRefused(RuntimeError):
    """The database's history and the migrations of this version disagree; says which and what to do."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of `migrations/`."""

    version: int
    name: str
    sql: str
    sha256: str


@lru_cache(maxsize=1)  # the files of an installed version do not change while it runs
def known_migrations() -> tuple[Migration, ...]:
    """Every migration of this version, in order.

    Raises:
        SchemaRefused: two files share a number, a number is missing, or a name is malformed.
    """
    found: list[Migration] = []
    for file in sorted(_folder().iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".sql"):
            continue
        match = _FILE_NAME.match(file.name)
        if match is None or int(match.group(1)) != len(found) + 1:
            raise SchemaRefused(f"migrations/{file.name}: expected {len(found) + 1:04d}_<what>.sql here")
        text = file.read_text("utf-8")
        digest = hashlib.sha256(text.encode()).hexdigest()
        found.append(Migration(len(found) + 1, file.name.removesuffix(".sql"), text, digest))
    return tuple(found)


async def migrate(dsn: str) -> list[str]:
    """Apply what is missing, each migration in its own transaction.

    Safe to run from many processes at once: an advisory lock lets one work, the others
    find nothing left to do.

    Returns:
        Names of the migrations that were applied now; empty where the schema was current.

    Raises:
        SchemaRefused: the database is newer than this version, or an applied file was changed.
        OSError, asyncpg.PostgresError: the server cannot be reached, or refuses a statement;
            the failed migration left nothing behind.
    """
    connection = await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S)
    try:
        await connection.execute(_queries["lock_schema"], LOCK_KEY)
        await connection.execute(_queries["create_journal"])
        missing = _missing(await connection.fetch(_queries["applied_migrations"]))
        for migration in missing:
            async with connection.transaction():
                await connection.execute(migration.sql)
                await connection.execute(
                    _queries["record_migration"], migration.version, migration.name, migration.sha256
                )
        return [migration.name for migration in missing]
    finally:
        await connection.close(timeout=CONNECT_TIMEOUT_S)


async def pending(pool: "asyncpg.Pool[asyncpg.Record]") -> list[str]:
    """Names of the migrations that the database lacks; writes nothing (for `/readyz`).

    Raises:
        SchemaRefused: as `migrate`.
        OSError, asyncpg.PostgresError: the server cannot be reached.
    """
    if not await pool.fetchval(_queries["journal_exists"]):
        return [migration.name for migration in known_migrations()]
    return [migration.name for migration in _missing(await pool.fetch(_queries["applied_migrations"]))]


def _missing(applied: list[asyncpg.Record]) -> list[Migration]:
    """Compare history and files; the part of the files that history lacks."""
    known = known_migrations()
    if len(applied) > len(known):
        raise SchemaRefused(
            f"the database has migration {applied[-1]['name']}, this version ends with "
            f"{known[-1].name if known else 'none'}; run the newer version of couponsvc"
        )
    for row, migration in zip(applied, known, strict=False):
        if (row["name"], row["sha256"]) != (migration.name, migration.sha256):
            raise SchemaRefused(
                f"migration {row['name']} was changed after it was applied (the file is now "
                f"{migration.name}, sha256 {migration.sha256[:12]}, applied was {row['sha256'][:12]}); "
                "restore the file and write a new migration instead"
            )
    return list(known[len(applied) :])


def _folder() -> Traversable:
    """`migrations/`: inside an installed wheel, else at the top of the checkout."""
    packaged = files("couponsvc") / "_migrations"
    if packaged.is_dir():
        return packaged
    return Path(__file__).parents[3] / "migrations"
