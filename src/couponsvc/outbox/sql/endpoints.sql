-- What became of deliveries, and how their endpoints are. Moments come from the caller. Every attempt
-- is recorded; the queue is changed only where whoever attempted still holds the lease, or nobody has it
-- and nothing has happened since (the lease was freed, or a crash of Postgres undid it).

-- name: already_noted :many
-- Which of these attempts are recorded, and therefore noted in full.
-- Params: $1 int[] subscription_no, $2 bigint[] event_no, $3 timestamptz[] attempted_at
SELECT r.subscription_no, r.event_no, r.attempted_at
FROM unnest($1::int[], $2::bigint[], $3::timestamptz[]) AS r (subscription_no, event_no, attempted_at)
WHERE EXISTS (
  SELECT FROM delivery_attempts a
  WHERE a.subscription_no = r.subscription_no AND a.event_no = r.event_no AND a.attempted_at = r.attempted_at);

-- name: settle :execute
-- Note outcomes: the attempts, and for each delivery its end, its next attempt or its parking.
-- Params: $1 timestamptz now, $2 int[] subscription_no, $3 bigint[] event_no, $4 int[] leased_by,
-- $5 int[] attempt_no, $6 timestamptz[] attempted_at, $7 int[] took_ms, $8 int[] status, $9 text[] outcome,
-- $10 text[] error, $11 timestamptz[] due_at, $12 text[] parked_because, $13 timestamptz[] queued_at
WITH result AS MATERIALIZED (
  SELECT * FROM unnest($2::int[], $3::bigint[], $4::int[], $5::int[], $6::timestamptz[], $7::int[], $8::int[],
                       $9::text[], $10::text[], $11::timestamptz[], $12::text[], $13::timestamptz[])
    AS r (subscription_no, event_no, leased_by, attempt_no, attempted_at, took_ms, status, outcome, error,
          due_at, parked_because, queued_at)
),
recorded AS (
  INSERT INTO delivery_attempts
    (subscription_no, event_no, attempt_no, attempted_at, took_ms, status, outcome, error)
  SELECT r.subscription_no, r.event_no, r.attempt_no, r.attempted_at, r.took_ms, r.status, r.outcome, r.error
  FROM result r
),
delivered AS (
  DELETE FROM deliveries d USING result r
  WHERE r.outcome = 'delivered' AND d.subscription_no = r.subscription_no AND d.event_no = r.event_no
    AND (d.leased_by = r.leased_by
         OR (d.leased_by IS NULL AND d.parked_at IS NULL
             AND d.queued_at = r.queued_at AND d.attempt_count = r.attempt_no - 1))
)
UPDATE deliveries d
SET attempt_count = r.attempt_no, leased_by = NULL, leased_until = NULL,
    due_at = coalesce(r.due_at, d.due_at), parked_because = r.parked_because,
    parked_at = CASE WHEN r.parked_because IS NOT NULL THEN $1::timestamptz END
FROM result r
WHERE r.outcome <> 'delivered' AND d.subscription_no = r.subscription_no AND d.event_no = r.event_no
  AND (d.leased_by = r.leased_by
       OR (d.leased_by IS NULL AND d.parked_at IS NULL
           AND d.queued_at = r.queued_at AND d.attempt_count = r.attempt_no - 1));

-- name: note_endpoints :many
-- Count failures in a row; a success ends the row. Returns endpoints that accept again, and how many
-- failures there were. What began before `held_until` was under way with the failure counted last, so
-- it does not count either: below $6 failures `held_until` is when that one was noted, from then on
-- the end of the pause before the next probe. A success counts below $6 whenever it began. In order,
-- so that relays that note at once do not wait for each other in a ring.
-- Params: $1 timestamptz now, $2 int[] subscription_no, $3 timestamptz[] when the newest accepted attempt
-- began, $4 timestamptz[] when the newest attempt that has failed since began, $5 boolean[] whether it
-- answered that it is gone, $6 int failures in a row from which an endpoint is failing, $7 int[] holds in s
WITH known AS MATERIALIZED (
  SELECT s.subscription_no, s.failure_count, coalesce(s.held_until, '-infinity') AS held_until,
         t.accepted_at, t.failed_at, t.gone
  FROM subscriptions s
  JOIN unnest($2::int[], $3::timestamptz[], $4::timestamptz[], $5::boolean[])
    AS t (subscription_no, accepted_at, failed_at, gone) USING (subscription_no)
  ORDER BY s.subscription_no
  FOR NO KEY UPDATE OF s
),
accepting AS (
  SELECT k.*, k.accepted_at IS NOT NULL AND (k.failure_count < $6 OR k.accepted_at >= k.held_until) AS accepts
  FROM known k
),
judged AS (
  SELECT a.*, CASE WHEN a.accepts THEN 0 ELSE a.failure_count END AS before,
         a.failed_at IS NOT NULL AND (a.accepts OR a.failed_at >= a.held_until) AS fails
  FROM accepting a
),
noted AS (
  UPDATE subscriptions s
  SET failure_count = j.before + j.fails::int,
      held_until = CASE
        WHEN j.fails AND j.before + 1 >= $6 THEN
          $1::timestamptz + interval '1 second' * ($7::int[])[least(j.before + 2 - $6, cardinality($7::int[]))]
        WHEN j.fails THEN $1
        WHEN j.accepts THEN NULL
        ELSE s.held_until END,
      disabled_at = CASE WHEN j.gone THEN coalesce(s.disabled_at, $1) ELSE s.disabled_at END
  FROM judged j
  WHERE s.subscription_no = j.subscription_no
    AND (j.fails OR j.gone OR (j.accepts AND j.failure_count > 0))
)
SELECT j.subscription_no, j.failure_count FROM judged j WHERE j.accepts AND j.failure_count > 0;

-- name: release_waiting :many
-- Make due at once, in the order they were queued in, deliveries that failed before and wait for endpoints
-- that accept again; how many of each. By place, as in lease_due.
-- Params: $1 timestamptz now, $2 int[] subscription_no, $3 int of each at most
WITH waiting AS (
  SELECT d.place
  FROM unnest($2::int[]) AS e (subscription_no)
  CROSS JOIN LATERAL (
    SELECT d.ctid AS place
    FROM deliveries d
    WHERE d.subscription_no = e.subscription_no AND d.parked_at IS NULL AND d.leased_by IS NULL
      AND d.due_at > $1 AND d.attempt_count > 0
    ORDER BY d.due_at, d.event_no
    LIMIT $3
    FOR UPDATE SKIP LOCKED
  ) AS d
),
released AS (
  UPDATE deliveries d SET due_at = least(d.queued_at, $1)
  WHERE d.ctid = ANY (ARRAY (SELECT w.place FROM waiting w))
  RETURNING d.subscription_no
)
SELECT r.subscription_no, count(*) AS released FROM released r GROUP BY r.subscription_no;

-- name: release_young :execute
-- The same of what failed a few times only. Looked at is what is due next, a number of it: where an endpoint
-- refuses much, what waits for it is long, and this comes often.
-- Params: $1 timestamptz now, $2 int[] subscription_no, $3 int of each at most, $4 int failures at most,
-- $5 timestamptz when the last of them is due at the latest
WITH waiting AS (
  SELECT d.place, d.attempt_count
  FROM unnest($2::int[]) AS e (subscription_no)
  CROSS JOIN LATERAL (
    SELECT d.ctid AS place, d.attempt_count
    FROM deliveries d
    WHERE d.subscription_no = e.subscription_no AND d.parked_at IS NULL AND d.leased_by IS NULL
      AND d.due_at > $1 AND d.due_at <= $5
    ORDER BY d.due_at, d.event_no
    LIMIT $3
    FOR UPDATE SKIP LOCKED
  ) AS d
)
UPDATE deliveries d SET due_at = least(d.queued_at, $1)
WHERE d.ctid = ANY (ARRAY (SELECT w.place FROM waiting w WHERE w.attempt_count BETWEEN 1 AND $4));

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

-- name: observe :one
-- How much waits, and for how long the oldest of it.
SELECT o.outbox_rows, o.outbox_since, d.queued, d.parked, d.queued_since
FROM (SELECT count(*) AS outbox_rows, min(occurred_at) AS outbox_since FROM outbox) AS o,
     (SELECT count(*) FILTER (WHERE parked_at IS NULL) AS queued,
             count(*) FILTER (WHERE parked_at IS NOT NULL) AS parked,
             min(queued_at) FILTER (WHERE parked_at IS NULL) AS queued_since
      FROM deliveries) AS d;
