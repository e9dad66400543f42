-- Asking for events again, and what became of each. A delivery that a relay is at is left to it. A moment
-- that the caller does not give is Postgres' own, by which relays go.

-- name: requeue :value
-- Begin anew the ladders of these events of a partner that are queued already, parked or not; how many. What
-- a relay is at, leasing or noting it at this moment, is left to it: nobody's outcome waits for this.
-- Params: $1 int partner_no, $2 int subscription_no, $3 timestamptz now or null, $4 bigint[] event_no
WITH free AS ( -- looked up one by one, so that no plan reads all events for each delivery
  SELECT d.subscription_no, d.event_no
  FROM unnest($4::bigint[]) AS n (event_no)
  CROSS JOIN LATERAL (
    SELECT d.subscription_no, d.event_no FROM deliveries d
    WHERE d.subscription_no = $2 AND d.event_no = n.event_no AND d.leased_by IS NULL
      AND EXISTS (SELECT FROM events e WHERE e.event_no = n.event_no AND e.partner_no = $1 OFFSET 0)
    FOR UPDATE SKIP LOCKED
  ) AS d
),
queued AS (
  UPDATE deliveries d
  SET queued_at = coalesce($3::timestamptz, now()), due_at = coalesce($3::timestamptz, now()),
      attempt_count = 0, parked_at = NULL, parked_because = NULL
  FROM free f
  WHERE d.subscription_no = f.subscription_no AND d.event_no = f.event_no
  RETURNING 1
)
SELECT count(*) FROM queued;

-- name: queue_new :value
-- Queue those of these events of a partner that are not queued; how many. A statement of its own after
-- `requeue`, which takes no row that this one adds: each event counts once.
-- Params: $1 int partner_no, $2 int subscription_no, $3 timestamptz now or null, $4 bigint[] event_no
WITH queued AS (
  INSERT INTO deliveries (subscription_no, event_no, queued_at, due_at)
  SELECT $2, e.event_no, coalesce($3::timestamptz, now()), coalesce($3::timestamptz, now())
  FROM events e
  WHERE e.partner_no = $1 AND e.event_no = ANY ($4::bigint[])
  ON CONFLICT (subscription_no, event_no) DO NOTHING
  RETURNING 1
)
SELECT count(*) FROM queued;

-- name: find_events :many
-- Which of these events a partner has.
-- Params: $1 int partner_no, $2 bigint[] event_no
SELECT e.event_no FROM events e WHERE e.partner_no = $1 AND e.event_no = ANY ($2::bigint[]);

-- name: oldest_partition :value
-- Which partition of events is the first that is kept.
SELECT min(split_part(c.relname, '_', 2)::bigint)
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'events'::regclass;

-- name: count_between :value
-- How many events of the types and drops that a subscription asks for there are, counted up to a limit.
-- Params: $1 int subscription_no, $2 timestamptz from, $3 timestamptz before, $4 text[] type, $5 int limit
SELECT count(*) FROM (
  SELECT FROM subscriptions s
  JOIN events e USING (partner_no)
  WHERE s.subscription_no = $1 AND e.occurred_at >= $2 AND e.occurred_at < $3 AND e.type = ANY ($4::text[])
    AND (s.drop_nos IS NULL OR e.drop_no = ANY (s.drop_nos))
  LIMIT $5
) found;

-- name: events_between :many
-- Events of the types and drops that a subscription asks for, in order, a piece at a time.
-- Params: $1 int subscription_no, $2 timestamptz from, $3 timestamptz before, $4 text[] type,
-- $5 bigint after event_no, $6 int limit
SELECT e.event_no
FROM subscriptions s
JOIN events e USING (partner_no)
WHERE s.subscription_no = $1 AND e.occurred_at >= $2 AND e.occurred_at < $3 AND e.type = ANY ($4::text[])
  AND (s.drop_nos IS NULL OR e.drop_no = ANY (s.drop_nos)) AND e.event_no > $5
ORDER BY e.event_no
LIMIT $6;

-- name: unpark :value
-- Queue once more what was given up, a piece at a time; how many.
-- Params: $1 int subscription_no, $2 timestamptz now or null, $3 int limit
WITH parked AS (
  SELECT d.subscription_no, d.event_no FROM deliveries d
  WHERE d.subscription_no = $1 AND d.parked_at IS NOT NULL
  ORDER BY d.event_no
  LIMIT $3
  FOR UPDATE SKIP LOCKED
),
queued AS (
  UPDATE deliveries d
  SET queued_at = coalesce($2::timestamptz, now()), due_at = coalesce($2::timestamptz, now()),
      attempt_count = 0, parked_at = NULL, parked_because = NULL
  FROM parked p
  WHERE d.subscription_no = p.subscription_no AND d.event_no = p.event_no
  RETURNING 1
)
SELECT count(*) FROM queued;

-- name: announce :execute
-- Have relays look at once (the channel on which the sequencer tells of new events).
-- Params: $1 text partner_no
SELECT pg_notify('couponsvc_events', $1);

-- name: queued_deliveries :many
-- What waits for a subscription, the newest event first, one page.
-- Params: $1 int subscription_no, $2 bigint before event_no, $3 text state or null, $4 int limit
SELECT q.event_no, q.state
FROM (
  SELECT d.event_no, CASE WHEN d.parked_at IS NOT NULL THEN 'parked' WHEN d.leased_by IS NOT NULL THEN 'delivering'
                     ELSE 'waiting' END AS state
  FROM deliveries d
  WHERE d.subscription_no = $1 AND d.event_no < $2
) q
WHERE $3::text IS NULL OR q.state = $3
ORDER BY q.event_no DESC
LIMIT $4;

-- name: delivered_deliveries :many
-- Events that a subscription has accepted and that are not queued again, the newest first, one page.
-- Params: $1 int subscription_no, $2 bigint before event_no, $3 int limit
SELECT DISTINCT a.event_no
FROM delivery_attempts a
WHERE a.subscription_no = $1 AND a.event_no < $2 AND a.outcome = 'delivered'
  AND NOT EXISTS (
    SELECT FROM deliveries d WHERE d.subscription_no = a.subscription_no AND d.event_no = a.event_no)
ORDER BY a.event_no DESC
LIMIT $3;

-- name: read_deliveries :many
-- What these events are, and how their deliveries stand; in no order.
-- Params: $1 int subscription_no, $2 bigint[] event_no
SELECT n.event_no, e.type, e.occurred_at, d.queued_at, d.due_at, d.parked_at, d.parked_because
FROM unnest($2::bigint[]) AS n (event_no)
LEFT JOIN events e USING (event_no)
LEFT JOIN deliveries d ON d.subscription_no = $1 AND d.event_no = n.event_no;

-- name: read_attempts :many
-- The newest attempts to deliver each of these events, the newest first.
-- Params: $1 int subscription_no, $2 bigint[] event_no, $3 int limit for each
SELECT n.event_no, a.attempt_no, a.attempted_at, a.took_ms, a.status, a.outcome, a.error
FROM unnest($2::bigint[]) AS n (event_no)
CROSS JOIN LATERAL (
  SELECT * FROM delivery_attempts t
  WHERE t.subscription_no = $1 AND t.event_no = n.event_no
  ORDER BY t.attempted_at DESC
  LIMIT $3
) a
ORDER BY n.event_no DESC, a.attempted_at DESC;
