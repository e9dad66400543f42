-- name: lock_partitions :execute
-- One at a time makes and drops partitions, until its transaction ends.
-- Params: $1 bigint key
SELECT pg_advisory_xact_lock($1::bigint);

-- name: events_to_make :many
-- Statements that make the missing partitions of events, up to one whole one beyond the newest number.
-- Made first and attached then, because that lets readers and the relay go on.
-- Params: $1 bigint numbers in a partition
SELECT format(
  'CREATE TABLE events_%s (LIKE events INCLUDING DEFAULTS INCLUDING CONSTRAINTS);'
  'ALTER TABLE events ATTACH PARTITION events_%s FOR VALUES FROM (%s) TO (%s)',
  n, n, n * $1::bigint, (n + 1) * $1::bigint
) AS statement
FROM event_counter, generate_series(last_event_no / $1::bigint, last_event_no / $1::bigint + 1) n
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
