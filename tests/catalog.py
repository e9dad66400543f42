"""A database's schema as text, from the catalog: the same on every version of Postgres from 15.

Not pg_dump, whose text changes with its version. `python -m tests.catalog DSN` prints it.
"""

import asyncio
import sys

import asyncpg

_COLUMNS = """
SELECT c.relname AS table, format('  %s %s%s%s%s', a.attname, format_type(a.atttypid, a.atttypmod),
  CASE WHEN coll.collname = 'C' THEN ' COLLATE "C"' ELSE '' END,
  CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END,
  CASE WHEN a.attidentity = 'a' THEN ' GENERATED ALWAYS AS IDENTITY'
       WHEN d.adbin IS NOT NULL THEN ' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid) ELSE '' END) AS line
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
LEFT JOIN pg_collation coll ON coll.oid = a.attcollation
WHERE c.relkind IN ('r', 'p')
ORDER BY c.relname, a.attnum
"""

# NOT NULL constraints are rows of their own since Postgres 18; here they stand with their columns.
_CONSTRAINTS = """
SELECT c.relname AS table, format('  CONSTRAINT %s %s', con.conname, pg_get_constraintdef(con.oid)) AS line
FROM pg_constraint con
JOIN pg_class c ON c.oid = con.conrelid
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'
WHERE con.contype <> 'n'
ORDER BY c.relname, con.conname
"""

_INDEXES = """
SELECT tablename AS table, '  ' || indexdef AS line FROM pg_indexes WHERE schemaname = 'public'
ORDER BY tablename, indexname
"""

_STORAGE = """
SELECT c.relname AS table, '  WITH ' || array_to_string(c.reloptions, ', ') AS line
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'
WHERE c.relkind IN ('r', 'p') AND c.reloptions IS NOT NULL
ORDER BY c.relname
"""


async def describe(connection: "asyncpg.Connection[asyncpg.Record]") -> str:
    """Tables in order of name: columns, constraints, indexes, storage."""
    tables: dict[str, list[str]] = {}
    for query in (_COLUMNS, _CONSTRAINTS, _INDEXES, _STORAGE):
        for table, line in await connection.fetch(query):
            tables.setdefault(table, []).append(line)
    return "\n".join(f"{table}\n" + "\n".join(lines) + "\n" for table, lines in sorted(tables.items()))


async def _print(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    sys.stdout.write(await describe(connection))
    await connection.close()


if __name__ == "__main__":
    asyncio.run(_print(sys.argv[1]))
