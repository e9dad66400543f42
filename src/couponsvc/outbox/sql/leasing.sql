-- Who delivers what. A relay has a number and holds a session lock on it; it leases deliveries under
-- that number. Moments come from the caller. What is due is found per endpoint, in order of due_at
-- and event_no (index deliveries_due), so an endpoint's long queue costs nobody else anything.

-- name: next_number :value
-- A number that no other relay has had for two thousand million starts.
SELECT nextval('relay_numbers')::int;

-- name: lock_number :value
-- Whether a number was locked by this session; it stays so until the session ends.
-- Params: $1 int key of the relays' locks, $2 int number
SELECT pg_try_advisory_lock($1::int, $2::int);

-- name: free_leases :value
-- Take deliveries from relays that are dead (nobody holds their lock) or late; how many.
-- Params: $1 int key of the relays' locks, $2 timestamptz now
WITH freed AS (
  UPDATE deliveries d
  SET leased_by = NULL, leased_until = NULL
  WHERE d.leased_by IS NOT NULL
    AND (d.leased_until <= $2
         OR d.leased_by NOT IN (
           SELECT l.objid::int FROM pg_locks l
           WHERE l.locktype = 'advisory' AND l.classid = $1::int::oid AND l.objsubid = 2 AND l.granted
             AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())))
  RETURNING 1
)
SELECT count(*) FROM freed;

-- name: lease_due :many
-- Lease what is due and can start now, the first of each endpoint before the second of any. An
-- endpoint that fails gets one probe, over all relays: none while anything of it is leased, as far as this
-- statement sees, and none where its row is another version than the one seen. Whoever probes writes the
-- row, so of two relays that see no lease only one finds the row as it saw it. A lock alone would not do:
-- who gets it after the other's commit still looks for leases as of its own beginning. Rows that somebody
-- is at are skipped, so leasing waits for nobody. The commit does not wait for the disk: what a crash
-- of Postgres undoes is leases, of relays whose sessions it ended.
-- Params: $1 int relay number, $2 timestamptz now, $3 timestamptz end of the lease, $4 int room in all,
-- $5 int[] endpoints known to this relay, $6 int[] room at each of them, $7 int room at any other,
-- $8 int failures in a row from which an endpoint is failing, $9 int room for probes
WITH RECURSIVE unhurried AS MATERIALIZED (
  SELECT set_config('synchronous_commit', 'off', true)
),
queued (subscription_no) AS (
  (SELECT d.subscription_no FROM deliveries d WHERE d.parked_at IS NULL ORDER BY d.subscription_no LIMIT 1)
  UNION ALL
  SELECT (SELECT d.subscription_no FROM deliveries d
          WHERE d.parked_at IS NULL AND d.subscription_no > q.subscription_no
          ORDER BY d.subscription_no LIMIT 1)
  FROM queued q
  WHERE q.subscription_no IS NOT NULL
),
endpoint AS MATERIALIZED (
  SELECT s.subscription_no, s.failure_count >= $8 AS failing, coalesce(known.room, $7) AS room,
         s.xmin AS version
  FROM unhurried
  CROSS JOIN queued q
  JOIN subscriptions s USING (subscription_no)
  LEFT JOIN unnest($5::int[], $6::int[]) AS known (subscription_no, room) USING (subscription_no)
  WHERE s.deleted_at IS NULL AND s.disabled_at IS NULL
    AND (s.failure_count < $8 OR s.held_until IS NULL OR s.held_until <= $2)
),
unasked AS (
  SELECT s.subscription_no
  FROM endpoint e
  JOIN subscriptions s USING (subscription_no)
  WHERE e.failing AND s.xmin = e.version
    AND EXISTS (SELECT FROM deliveries d
                WHERE d.subscription_no = e.subscription_no AND d.parked_at IS NULL AND d.due_at <= $2)
    AND NOT EXISTS (SELECT FROM deliveries d
                    WHERE d.subscription_no = e.subscription_no AND d.leased_by IS NOT NULL)
  LIMIT $9
  FOR NO KEY UPDATE OF s SKIP LOCKED
),
probing AS ( -- a new version, which is all that it is for
  UPDATE subscriptions s SET held_until = s.held_until
  FROM unasked u WHERE s.subscription_no = u.subscription_no
  RETURNING s.subscription_no
),
startable AS (
  SELECT subscription_no, room FROM endpoint WHERE NOT failing
  UNION ALL
  SELECT subscription_no, 1 FROM probing
),
chosen AS (
  SELECT d.place
  FROM startable e
  CROSS JOIN LATERAL (
    SELECT d.ctid AS place, d.due_at, d.event_no
    FROM deliveries d
    WHERE d.subscription_no = e.subscription_no AND d.parked_at IS NULL AND d.due_at <= $2
      AND d.leased_by IS NULL
    ORDER BY d.due_at, d.event_no
    LIMIT e.room
    FOR UPDATE SKIP LOCKED
  ) AS d
  ORDER BY row_number() OVER (PARTITION BY e.subscription_no ORDER BY d.due_at, d.event_no), d.due_at
  LIMIT $4
),
leased AS ( -- by place, so that no plan reads the whole queue, whatever Postgres believes of its size
  UPDATE deliveries d
  SET leased_by = $1, leased_until = $3
  WHERE d.ctid = ANY (ARRAY (SELECT c.place FROM chosen c))
  RETURNING d.subscription_no, d.event_no, d.attempt_count, d.queued_at
)
SELECT l.subscription_no, l.event_no, l.attempt_count, l.queued_at,
       l.subscription_no IN (SELECT p.subscription_no FROM probing p) AS probe, s.failure_count > 0 AS troubled,
       s.partner_no, s.url, s.sealed_secret, s.previous_sealed_secret, s.previous_until
FROM leased l
JOIN subscriptions s USING (subscription_no)
ORDER BY l.event_no, l.subscription_no;

-- name: give_back :execute
-- End leases whose deliveries were not attempted, or given up before their outcome was known.
-- Params: $1 int relay number, $2 int[] subscription_no, $3 bigint[] event_no
UPDATE deliveries d
SET leased_by = NULL, leased_until = NULL
FROM unnest($2::int[], $3::bigint[]) AS g (subscription_no, event_no)
WHERE d.subscription_no = g.subscription_no AND d.event_no = g.event_no AND d.leased_by = $1;
