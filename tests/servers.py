"""Real servers for tests: one Valkey and one Postgres per pytest worker, in a short directory."""

import asyncio
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from couponsvc.engines.account import Account
from couponsvc.engines.place import make_data_dir
from couponsvc.engines.postgres import EmbeddedPostgres
from couponsvc.engines.redis import EmbeddedRedis
from couponsvc.ledger.migrate import migrate

TEMPLATE = "couponsvc_template"
SCRAM_ROUNDS_SINCE = 16
"""The version of Postgres that lets one choose their number."""


@contextmanager
def short_directory() -> Iterator[Path]:
    """A fresh data directory that the engines' account can enter; removed afterwards."""
    base = Path(tempfile.mkdtemp(prefix="cs-"))
    base.chmod(0o711)
    try:
        yield make_data_dir(base / "data", Account.current())
    finally:
        shutil.rmtree(base)


class RedisServer:
    """The worker's Redis, and how to hurt it. Its URL stays the same over restarts."""

    def __init__(self, data_dir: Path) -> None:
        self.engine = EmbeddedRedis(data_dir)
        self.engine.start()

    @property
    def url(self) -> str:
        return self.engine.url

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self.engine.kill()

    def restart(self, *, keep_data: bool) -> None:
        """Kill it and start it again, with its append-only file or empty."""
        self.engine.kill()
        if not keep_data:
            self.remove_data()
        self.engine.start()

    def remove_data(self) -> None:
        """Lose everything it had on disk. The server must be down."""
        assert not self.engine.running
        for path in self.data_paths():
            shutil.rmtree(path)

    def data_paths(self) -> list[Path]:
        """Directories that hold its data, for tests that keep an older copy."""
        return [path for path in [self.engine.home / "appendonlydir"] if path.exists()]

    def ensure_running(self) -> None:
        self.engine.start()

    def flush(self) -> None:
        """Empty it, without a client library: usable from any test, sync or async."""
        assert self.command("FLUSHALL") == b"+OK\r\n"

    def foreign_keys(self, prefix: str) -> list[str]:
        """Keys that do not begin with `prefix`."""
        answer = self.command("EVAL", "return table.concat(redis.call('KEYS', '*'), '\\n')", "0")
        names = answer.split(b"\r\n", 1)[1].removesuffix(b"\r\n").decode("utf-8", "replace").split("\n")
        return [name for name in names if name and not name.startswith(prefix)]

    def command(self, *parts: str) -> bytes:
        """Send one command on a connection of its own; the whole raw answer (one bulk or line)."""
        password = self.url.split("@")[0].removeprefix("redis://:")
        with closing(socket.create_connection(("127.0.0.1", self.engine.port), 5)) as connection:
            connection.sendall(_encode(("AUTH", password)) + _encode(parts))
            reader = connection.makefile("rb")
            assert reader.readline() == b"+OK\r\n"
            line = reader.readline()
            if line.startswith(b"$"):
                line += reader.read(int(line[1:]) + 2)
            return line


def _encode(parts: Iterable[str]) -> bytes:
    encoded = [part.encode() for part in parts]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in encoded)


END_OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
TABLES = """
SELECT string_agg(quote_ident(relname), ', ') FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'schema_migrations'
"""
HELD_MUCH = """
SELECT coalesce(bool_or(reltuples <> -1 OR pg_relation_size(oid) > 10 * 8192), false) FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'schema_migrations'
"""
"""Whether the planner could tell it from a new database: it takes a table never looked at for ten pages."""
DELETE_ALL = """
DO $$
DECLARE
  name text;
  has_rows boolean;
BEGIN
  SET LOCAL session_replication_role = replica;  -- neither foreign keys nor triggers
  FOR name IN
    SELECT quote_ident(relname) FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'schema_migrations'
  LOOP
    EXECUTE format('SELECT EXISTS (SELECT FROM %s)', name) INTO has_rows;
    IF has_rows THEN EXECUTE format('DELETE FROM %s', name); END IF;
  END LOOP;
  PERFORM setval(format('%I.%I', schemaname, sequencename), start_value, false)
  FROM pg_sequences WHERE schemaname = 'public';
END $$
"""
PARTITIONS = """
SELECT string_agg(quote_ident(c.relname), ', ') FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
"""
SCHEMA_FINGERPRINT = """
SELECT md5(string_agg(item, '|' ORDER BY item)) FROM (
  SELECT conrelid::regclass || conname || pg_get_constraintdef(oid) FROM pg_constraint
  WHERE connamespace = 'public'::regnamespace
  UNION ALL
  SELECT c.relname || a.attname || a.atttypid FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
  WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0
  UNION ALL
  SELECT tgname FROM pg_trigger WHERE NOT tgisinternal
  UNION ALL
  SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
  UNION ALL
  SELECT version || sha256 FROM schema_migrations
) AS items (item)
"""


class PostgresServer:
    """The worker's Postgres. Databases are cloned from a template that is migrated once."""

    def __init__(self, data_dir: Path) -> None:
        self.engine = EmbeddedPostgres(data_dir)
        self.engine.start()
        self._has_template = False
        self._clean: list[str] = []
        self._fingerprint = ""
        self._cleaners: dict[str, asyncpg.Connection[asyncpg.Record]] = {}

    @property
    def dsn(self) -> str:
        """Of the maintenance database."""
        return self.engine.maintenance_dsn

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self.engine.kill()

    def stop(self) -> None:
        """Stop in order."""
        self.engine.stop()

    def restart(self) -> None:
        """Kill it and start it again on the same data."""
        self.engine.kill()
        self.engine.start()

    def ensure_running(self) -> None:
        self.engine.start()

    async def close(self) -> None:
        """Stop it for good."""
        for connection in self._cleaners.values():
            connection.terminate()
        self._cleaners.clear()
        await asyncio.sleep(0)  # their sockets are closed in the loop's next turn
        self.engine.stop()

    async def create_database(self) -> str:
        """DSN of a fresh, migrated database: one that was cleaned, or a clone of the template."""
        if self._clean:
            return self._clean.pop()
        name = f"t_{secrets.token_hex(6)}"
        connection = await asyncpg.connect(self.dsn)
        try:
            if not self._has_template:
                await connection.execute(f"DROP DATABASE IF EXISTS {TEMPLATE}")
                await connection.execute(f"CREATE DATABASE {TEMPLATE}")
                await migrate(self.engine.dsn_of(TEMPLATE))
                await _cheapen_logins(connection, urlsplit(self.dsn).password or "")
                self._has_template = True
            await connection.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        finally:
            await connection.close()
        dsn = self.engine.dsn_of(name)
        self._fingerprint = self._fingerprint or await self._clean_up(dsn)
        return dsn

    async def recycle(self, dsn: str) -> None:
        """Empty a database for the next test, faster than a clone; drop it if it was altered."""
        try:
            if await self._clean_up(dsn) == self._fingerprint:
                self._clean.append(dsn)
                return
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            pass  # it cannot be cleaned, so it is not used again
        if connection := self._cleaners.pop(dsn, None):
            connection.terminate()
        await self.drop_database(dsn)

    async def _clean_up(self, dsn: str) -> str:
        """Empty every table, reset every counter; a digest of the schema.

        Most tests leave a few rows: deleting them costs an eighth of TRUNCATE, which makes new files.
        """
        connection = await self._cleaner(dsn)
        await connection.execute(END_OTHERS)
        if partitions := await connection.fetchval(PARTITIONS):
            await connection.execute(f"DROP TABLE {partitions}")
        fingerprint = str(await connection.fetchval(SCHEMA_FINGERPRINT))
        if await connection.fetchval(HELD_MUCH):
            tables = await connection.fetchval(TABLES)
            await connection.execute(f"TRUNCATE {tables} RESTART IDENTITY CASCADE")
        else:
            await connection.execute(DELETE_ALL)
        await connection.execute("INSERT INTO event_counter DEFAULT VALUES")
        return fingerprint

    async def _cleaner(self, dsn: str) -> "asyncpg.Connection[asyncpg.Record]":
        """A connection that stays: half of what cleaning would cost is learning the schema anew."""
        connection = self._cleaners.get(dsn)
        if connection is None or connection.is_closed():
            connection = self._cleaners[dsn] = await asyncpg.connect(dsn)
        return connection

    async def create_empty_database(self) -> str:
        """DSN of a fresh database without a schema, for tests of migrations."""
        name = f"t_{secrets.token_hex(6)}"
        await self._administer(f"CREATE DATABASE {name}")
        return self.engine.dsn_of(name)

    async def drop_database(self, dsn: str) -> None:
        """Remove it, whoever is still connected."""
        name = dsn.rsplit("/", 1)[1].partition("?")[0]
        await self._administer(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    async def _administer(self, statement: str) -> None:
        connection = await asyncpg.connect(self.dsn)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


async def _cheapen_logins(connection: "asyncpg.Connection[asyncpg.Record]", password: str) -> None:
    """One round of SHA-256 instead of 4,096, each time on both sides: nobody guesses at this password."""
    if connection.get_server_version().major >= SCRAM_ROUNDS_SINCE:
        await connection.execute("SET scram_iterations = 1")
        statement = await connection.fetchval(
            "SELECT format('ALTER ROLE %I PASSWORD %L', current_user, $1::text)", password
        )
        await connection.execute(statement)


def children() -> dict[int, str]:
    """Living child processes of ours, by pid, with their command line (Linux)."""
    pids = [
        int(pid)
        for task in Path("/proc/self/task").iterdir()
        for pid in _read(task / "children").decode().split()
    ]
    return {
        pid: _read(Path(f"/proc/{pid}/cmdline")).replace(b"\0", b" ").decode() for pid in pids if alive(pid)
    }


def alive(pid: int) -> bool:
    """Whether a process exists and has not ended (a zombie has)."""
    status = _read(Path(f"/proc/{pid}/stat"))
    return bool(status) and status.rpartition(b")")[2].split()[0] != b"Z"


def wait_until_gone(pids: Iterable[int], *, patience_s: float = 2.0) -> list[int]:
    """The pids that still live after `patience_s`."""
    give_up_at = time.monotonic() + patience_s
    remaining = [pid for pid in pids if alive(pid)]
    while remaining and time.monotonic() < give_up_at:
        time.sleep(0.01)
        remaining = [pid for pid in remaining if alive(pid)]
    return remaining


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended while we looked
        return b""
