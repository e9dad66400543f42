-- What the figures of a drop need beside its definition.

-- name: read_blessing :one
-- The Redis server of a shard that was checked last.
-- Params: $1 smallint shard
SELECT run_id, replication_id FROM blessings WHERE shard = $1;
