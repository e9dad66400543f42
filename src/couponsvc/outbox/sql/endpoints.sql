-- What became of deliveries, and how their endpoints are. Moments come from the caller. Every attempt
-- is recorded; the queue is changed only where whoever attempted still holds the lease, or nobody has it
-- and nothing has happened since (the lease was freed, or a crash of Postgres undid it).

-- name: settle :many
-- Note outcomes: the attempts, and for each delivery its end, its next attempt or its parking. Returns
-- endpoints among those that accepted something and were counted as failing before.
-- Params: $1 timestamptz now, $2 int[] subscription_no, $3 bigint[] event_no, $4 int[] leased_by,
-- $5 int[] attempt_no, $6 timestamptz[] attempted_at, $7 int[] took_ms, $8 int[] status, $9 text[] outcome,
-- $10 text[] error, $11 timestamptz[] due_at, $12 text[] parked_because,
-- $13 boolean whether these may have been noted before, $14 timestamptz[] queued_at
WITH result AS MATERIALIZED (
  SELECT * FROM unnest($2::int[], $3::bigint[], $4::int[], $5::int[], $6::timestamptz[], $7::int[], $8::int[],
                       $9::text[], $10::text[], $11::timestamptz[], $12::text[], $14::timestamptz[])
    AS r (subscription_no, event_no, leased_by, attempt_no, attempted_at, took_ms, status, outcome, error,
          due_at, parked_because, queued_at)
),
recorded AS (
  INSERT INTO delivery_attempts
    (subscription_no, event_no, attempt_no, attempted_at, took_ms, status, outcome, error)
  SELECT r.subscription_no, r.event_no, r.attempt_no, r.attempted_at, r.took_ms, r.status, r.outcome, r.error
  FROM result r
  WHERE NOT ($13::boolean AND EXISTS (
    SELECT FROM delivery_attempts a
    WHERE a.subscription_no = r.subscription_no AND a.event_no = r.event_no
      AND a.attempted_at = r.attempted_at))
),
delivered AS (
  DELETE FROM deliveries d USING result r
  WHERE r.outcome = 'delivered' AND d.subscription_no = r.subscription_no AND d.event_no = r.event_no
    AND (d.leased_by = r.leased_by
         OR (d.leased_by IS NULL AND d.parked_at IS NULL
             AND d.queued_at = r.queued_at AND d.attempt_count = r.attempt_no - 1))
),
failed AS (
  UPDATE deliveries d
  SET attempt_count = r.attempt_no, leased_by = NULL, leased_until = NULL,
      due_at = coalesce(r.due_at, d.due_at), parked_because = r.parked_because,
      parked_at = CASE WHEN r.parked_because IS NOT NULL THEN $1::timestamptz END
  FROM result r
  WHERE r.outcome <> 'delivered' AND d.subscription_no = r.subscription_no AND d.event_no = r.event_no
    AND (d.leased_by = r.leased_by
         OR (d.leased_by IS NULL AND d.parked_at IS NULL
             AND d.queued_at = r.queued_at AND d.attempt_count = r.attempt_no - 1))
)
SELECT s.subscription_no
FROM subscriptions s
WHERE s.failure_count > 0
  AND s.subscription_no IN (SELECT r.subscription_no FROM result r WHERE r.outcome = 'delivered');

-- name: note_successes :many
-- Endpoints accept again; returns those that had been held back.
-- Params: $1 int[] subscription_no, $2 int failures in a row from which an endpoint is failing
WITH before AS MATERIALIZED (
  SELECT s.subscription_no, s.failure_count FROM subscriptions s
  WHERE s.subscription_no = ANY ($1::int[]) AND s.failure_count > 0
  ORDER BY s.subscription_no
  FOR NO KEY UPDATE
),
healed AS (
  UPDATE subscriptions s SET failure_count = 0, held_until = NULL
  FROM before b WHERE s.subscription_no = b.subscription_no
)
SELECT b.subscription_no FROM before b WHERE b.failure_count >= $2;

-- name: note_failures :execute
-- Count failures in a row. A failed probe lengthens the hold; deliveries that were under way when the
-- endpoint began to fail count up to where it begins, and no further.
-- Params: $1 timestamptz now, $2 int[] subscription_no, $3 int[] failures, $4 boolean[] whether a probe
-- failed, $5 int failures in a row from which an endpoint is failing, $6 int[] holds in seconds
WITH counted AS MATERIALIZED (
  SELECT s.subscription_no, s.failure_count AS before,
         CASE WHEN f.probe THEN s.failure_count + 1
              ELSE greatest(s.failure_count, least(s.failure_count + f.failures, $5)) END AS after
  FROM subscriptions s
  JOIN unnest($2::int[], $3::int[], $4::boolean[]) AS f (subscription_no, failures, probe)
    USING (subscription_no)
  ORDER BY s.subscription_no
  FOR NO KEY UPDATE OF s
)
UPDATE subscriptions s
SET failure_count = c.after,
    held_until = CASE
      WHEN c.after >= $5 AND c.after > c.before THEN
        $1::timestamptz + interval '1 second'
          * ($6::int[])[least(c.after - $5::int + 1, cardinality($6::int[]))]
      ELSE s.held_until END
FROM counted c
WHERE s.subscription_no = c.subscription_no;

-- name: release_waiting :value
-- Make due at once, in the order they were queued in, what waits for endpoints that accept again; how many.
-- Params: $1 timestamptz now, $2 int[] subscription_no, $3 int how many at most
WITH waiting AS (
  SELECT d.subscription_no, d.event_no FROM deliveries d
  WHERE d.subscription_no = ANY ($2::int[]) AND d.parked_at IS NULL AND d.leased_by IS NULL AND d.due_at > $1
  LIMIT $3
  FOR UPDATE SKIP LOCKED
),
released AS (
  UPDATE deliveries d SET due_at = least(d.queued_at, $1)
  FROM waiting w WHERE d.subscription_no = w.subscription_no AND d.event_no = w.event_no
  RETURNING 1
)
SELECT count(*) FROM released;

-- name: disable :execute
-- Nothing is sent to these endpoints any more.
-- Params: $1 timestamptz now, $2 int[] subscription_no
UPDATE subscriptions s SET disabled_at = $1
WHERE s.subscription_no = ANY ($2::int[]) AND s.disabled_at IS NULL;

-- name: park_disabled :value
-- Park what is queued for endpoints that were disabled; how many.
-- Params: $1 timestamptz now, $2 text why, $3 int how many at most
WITH useless AS (
  SELECT d.subscription_no, d.event_no
  FROM subscriptions s
  JOIN deliveries d USING (subscription_no)
  WHERE s.disabled_at IS NOT NULL AND d.parked_at IS NULL AND d.leased_by IS NULL
  LIMIT $3
  FOR UPDATE OF d SKIP LOCKED
),
parked AS (
  UPDATE deliveries d SET parked_at = $1, parked_because = $2
  FROM useless u WHERE d.subscription_no = u.subscription_no AND d.event_no = u.event_no
  RETURNING 1
)
SELECT count(*) FROM parked;

-- name: park_overdue :value
-- Park what was queued before a moment for endpoints that fail, tried or not; how many.
-- Params: $1 timestamptz now, $2 text why, $3 int how many at most, $4 timestamptz queued before this,
-- $5 int failures in a row from which an endpoint is failing
WITH overdue AS (
  SELECT d.subscription_no, d.event_no
  FROM subscriptions s
  JOIN deliveries d USING (subscription_no)
  WHERE s.failure_count >= $5 AND d.parked_at IS NULL AND d.leased_by IS NULL AND d.due_at <= $1
    AND d.queued_at < $4
  LIMIT $3
  FOR UPDATE OF d SKIP LOCKED
),
parked AS (
  UPDATE deliveries d SET parked_at = $1, parked_because = $2
  FROM overdue o WHERE d.subscription_no = o.subscription_no AND d.event_no = o.event_no
  RETURNING 1
)
SELECT count(*) FROM parked;

-- name: put_off :execute
-- End leases of deliveries that this relay cannot attempt: due again later, parked where they are too old.
-- Params: $1 timestamptz now, $2 timestamptz due again, $3 int relay number, $4 int[] subscription_no,
-- $5 bigint[] event_no, $6 timestamptz too old if queued before this, $7 text why
UPDATE deliveries d
SET leased_by = NULL, leased_until = NULL, due_at = $2,
    parked_at = CASE WHEN d.queued_at < $6 THEN $1::timestamptz END,
    parked_because = CASE WHEN d.queued_at < $6 THEN $7::text END
FROM unnest($4::int[], $5::bigint[]) AS g (subscription_no, event_no)
WHERE d.subscription_no = g.subscription_no AND d.event_no = g.event_no AND d.leased_by = $3;

-- name: forget_deleted :value
-- Remove what was queued for a subscription while it was being deleted; how many.
-- Params: $1 int how many at most
WITH useless AS (
  SELECT d.subscription_no, d.event_no
  FROM subscriptions s
  JOIN deliveries d USING (subscription_no)
  WHERE s.deleted_at IS NOT NULL AND d.leased_by IS NULL
  LIMIT $1
  FOR UPDATE OF d SKIP LOCKED
),
gone AS (
  DELETE FROM deliveries d USING useless u
  WHERE d.subscription_no = u.subscription_no AND d.event_no = u.event_no
  RETURNING 1
)
SELECT count(*) FROM gone;

-- name: observe :one
-- How much waits, and for how long the oldest of it.
SELECT o.outbox_rows, o.outbox_since, d.queued, d.parked, d.queued_since
FROM (SELECT count(*) AS outbox_rows, min(occurred_at) AS outbox_since FROM outbox) AS o,
     (SELECT count(*) FILTER (WHERE parked_at IS NULL) AS queued,
             count(*) FILTER (WHERE parked_at IS NOT NULL) AS parked,
             min(queued_at) FILTER (WHERE parked_at IS NULL) AS queued_since
      FROM deliveries) AS d;
