-- What is cleared away beside the flow, a piece at a time. Moments come from the caller. Rows that a
-- relay is at are left to it, and to a later turn. Each piece is found per endpoint, by an index that
-- begins with it, and changed by place: what else is queued costs nothing.

-- name: park_disabled :value
-- Park what is queued for endpoints that were disabled; how many.
-- Params: $1 timestamptz now, $2 text why, $3 int how many at most
WITH useless AS (
  SELECT d.place
  FROM subscriptions s
  CROSS JOIN LATERAL (
    SELECT d.ctid AS place FROM deliveries d
    WHERE d.subscription_no = s.subscription_no AND d.parked_at IS NULL AND d.leased_by IS NULL
    LIMIT $3
    FOR UPDATE SKIP LOCKED
  ) AS d
  WHERE s.disabled_at IS NOT NULL AND s.deleted_at IS NULL
  LIMIT $3
),
parked AS (
  UPDATE deliveries d SET parked_at = $1, parked_because = $2
  WHERE d.ctid = ANY (ARRAY (SELECT u.place FROM useless u))
  RETURNING 1
)
SELECT count(*) FROM parked;

-- name: park_overdue :value
-- Park what was queued before a moment for endpoints that fail, tried or not; how many.
-- Params: $1 timestamptz now, $2 text why, $3 int how many at most, $4 timestamptz queued before this,
-- $5 int failures in a row from which an endpoint is failing
WITH overdue AS (
  SELECT d.ctid AS place
  FROM subscriptions s
  JOIN deliveries d USING (subscription_no)
  WHERE s.failure_count >= $5 AND d.parked_at IS NULL AND d.leased_by IS NULL AND d.due_at <= $1
    AND d.queued_at < $4
  LIMIT $3
  FOR UPDATE OF d SKIP LOCKED
),
parked AS (
  UPDATE deliveries d SET parked_at = $1, parked_because = $2
  WHERE d.ctid = ANY (ARRAY (SELECT o.place FROM overdue o))
  RETURNING 1
)
SELECT count(*) FROM parked;

-- name: forget_deleted :value
-- Remove what is queued for subscriptions that were deleted; how many.
-- Params: $1 int how many at most
WITH useless AS (
  SELECT d.place
  FROM subscriptions s
  CROSS JOIN LATERAL (
    SELECT d.ctid AS place FROM deliveries d
    WHERE d.subscription_no = s.subscription_no AND d.leased_by IS NULL
    LIMIT $1
    FOR UPDATE SKIP LOCKED
  ) AS d
  WHERE s.deleted_at IS NOT NULL
  LIMIT $1
),
gone AS (
  DELETE FROM deliveries d WHERE d.ctid = ANY (ARRAY (SELECT u.place FROM useless u))
  RETURNING 1
)
SELECT count(*) FROM gone;
