-- name: lock_partitions :execute
-- One at a time makes and drops partitions, until its transaction ends.
-- Params: $1 bigint key
SELECT pg_advisory_xact_lock($1::bigint);

-- name: events_to_make :many
-- Statements that make the missing partitions of events: that of the next number and the one after it.
-- Made first and attached then, because that lets readers and the relay go on.
-- Params: $1 bigint numbers in a partition
SELECT format(
  'CREATE TABLE events_%s (LIKE events INCLUDING DEFAULTS INCLUDING CONSTRAINTS);'
  'ALTER TABLE events ATTACH PARTITION events_%s FOR VALUES FROM (%s) TO (%s)',
  n, n, n * $1::bigint, (n + 1) * $1::bigint
) AS statement
FROM event_counter, generate_series((last_event_no + 1) / $1::bigint, (last_event_no + 1) / $1::bigint + 1) n
WHERE to_regclass(format('events_%s', n)) IS NULL
ORDER BY n;

-- name: attempts_to_make :many
-- Statements that make the missing days of the log of attempts, with one day before for late clocks.
-- Params: $1 date today, $2 int days ahead
SELECT format(
  'CREATE TABLE delivery_attempts_%s (LIKE delivery_attempts INCLUDING DEFAULTS INCLUDING CONSTRAINTS);'
  'ALTER TABLE delivery_attempts ATTACH PARTITION delivery_attempts_%s FOR VALUES FROM (%L) TO (%L)',
  to_char(day, 'YYYYMMDD'), to_char(day, 'YYYYMMDD'), day, day + 1
) AS statement
FROM (SELECT $1::date + n AS day FROM generate_series(-1, $2::int) n) days
WHERE to_regclass('delivery_attempts_' || to_char(day, 'YYYYMMDD')) IS NULL
ORDER BY day;

-- name: old_events :many
-- The partitions of events that may go, oldest first and none after one that must stay: written to
-- their end or passed over (after a restore, see docs/faults.md), older than the moment, with nothing
-- queued and no broker that is still to be fed. Who has
-- anything queued is found as in lease_due, and looked up each by itself: the queue has no index by event.
-- Params: $1 bigint numbers in a partition, $2 timestamptz before, $3 boolean whether what is parked counts
WITH RECURSIVE queue (subscription_no) AS (
  (SELECT d.subscription_no FROM deliveries d ORDER BY d.subscription_no LIMIT 1)
  UNION ALL
  SELECT (SELECT d.subscription_no FROM deliveries d
          WHERE d.subscription_no > q.subscription_no ORDER BY d.subscription_no LIMIT 1)
  FROM queue q
  WHERE q.subscription_no IS NOT NULL
)
SELECT partition_no, statement
FROM (
  SELECT partition_no, format('DROP TABLE events_%s', partition_no) AS statement,
    bool_and(may_go) OVER (ORDER BY partition_no) AS may_go
  FROM (
    SELECT
      n.partition_no,
      n.last_no <= (SELECT last_event_no FROM event_counter)
      AND coalesce((SELECT max(occurred_at) FROM (
            SELECT occurred_at FROM events
            WHERE event_no BETWEEN n.first_no AND n.last_no
            ORDER BY event_no DESC LIMIT 1000
          ) newest) < $2, true)
      AND NOT EXISTS (SELECT FROM sinks WHERE last_event_no < n.last_no)
      AND NOT EXISTS (
        SELECT FROM queue q
        CROSS JOIN LATERAL (
          SELECT FROM deliveries d
          WHERE d.subscription_no = q.subscription_no AND d.event_no BETWEEN n.first_no AND n.last_no
            AND ($3::boolean OR d.parked_at IS NULL)
          LIMIT 1
        ) one
      ) AS may_go
    FROM (
      SELECT partition_no, partition_no * $1::bigint AS first_no, (partition_no + 1) * $1::bigint - 1 AS last_no
      FROM (
        SELECT split_part(c.relname, '_', 2)::bigint AS partition_no
        FROM pg_inherits i
        JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'events'::regclass
      ) named
    ) n
  ) judged
) run
WHERE may_go
ORDER BY partition_no;

-- name: remove_parked :value
-- Forget deliveries of these events that were given up; how many.
-- Params: $1 bigint first event_no, $2 bigint last event_no, $3 int how many at most
WITH RECURSIVE queue (subscription_no) AS (
  (SELECT d.subscription_no FROM deliveries d ORDER BY d.subscription_no LIMIT 1)
  UNION ALL
  SELECT (SELECT d.subscription_no FROM deliveries d
          WHERE d.subscription_no > q.subscription_no ORDER BY d.subscription_no LIMIT 1)
  FROM queue q
  WHERE q.subscription_no IS NOT NULL
),
useless AS (
  SELECT d.place
  FROM queue q
  CROSS JOIN LATERAL (
    SELECT d.ctid AS place FROM deliveries d
    WHERE d.subscription_no = q.subscription_no AND d.event_no BETWEEN $1 AND $2 AND d.parked_at IS NOT NULL
    LIMIT $3
    FOR UPDATE SKIP LOCKED
  ) AS d
  LIMIT $3
),
gone AS (
  DELETE FROM deliveries d WHERE d.ctid = ANY (ARRAY (SELECT u.place FROM useless u))
  RETURNING 1
)
SELECT count(*) FROM gone;

-- name: lock_events :execute
-- Wait until nobody reads events any more: who queues a delivery of an event has read it before, so
-- what is judged from here on stays so.
LOCK TABLE events IN ACCESS EXCLUSIVE MODE;

-- name: old_attempts :many
-- The days of the log of attempts that may go; compared as names, because Postgres may look at the
-- names of other tables first.
-- Params: $1 date of the first day to keep
SELECT format('DROP TABLE %I', c.relname) AS statement
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'delivery_attempts'::regclass
  AND c.relname < 'delivery_attempts_' || to_char($1::date, 'YYYYMMDD')
ORDER BY c.relname;

-- name: wait_little :execute
-- While we wait for a table, everybody who comes after us waits, too.
-- Params: $1 text lock_timeout
SELECT set_config('lock_timeout', $1, true);
