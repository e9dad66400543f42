-- name: create_journal :execute
-- Make the table that says which migrations this database has seen.
CREATE TABLE IF NOT EXISTS schema_migrations (
  version     integer     PRIMARY KEY CHECK (version > 0),
  name        text        NOT NULL UNIQUE,
  sha256      text        NOT NULL,
  applied_at  timestamptz NOT NULL DEFAULT now()
);

-- name: journal_exists :value
-- Whether this database was ever migrated; asked without making anything.
SELECT to_regclass('schema_migrations') IS NOT NULL;

-- name: applied_migrations :many
-- What was applied, in order.
SELECT version, name, sha256 FROM schema_migrations ORDER BY version;

-- name: record_migration :execute
-- Note a migration, in its own transaction.
-- Params: $1 int version, $2 text name, $3 text sha256
INSERT INTO schema_migrations (version, name, sha256) VALUES ($1, $2, $3);

-- name: lock_schema :execute
-- One migrator at a time; released with the session.
-- Params: $1 bigint key
SELECT pg_advisory_lock($1);
