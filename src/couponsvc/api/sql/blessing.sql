-- name: read_blessing :one
-- The Redis server of a shard that was checked last; none while another one is being checked, because from
-- then on no grant of the old one can be confirmed (decision 0019).
-- Params: $1 smallint shard
SELECT run_id, replication_id
FROM blessings
WHERE shard = $1
      AND coalesce(checking_run_id, run_id) = run_id
      AND coalesce(checking_replication_id, replication_id) = replication_id;
