-- How far brokers were fed. A row is one broker; one relay at a time feeds it.

-- name: begin_sink :execute
-- Begin to feed a broker: with the first event that is kept, or after the last one there is.
-- Params: $1 text sink, $2 bool from_now
INSERT INTO sinks (sink, last_event_no)
SELECT $1, CASE WHEN $2 THEN (SELECT last_event_no FROM event_counter) ELSE 0 END
ON CONFLICT (sink) DO NOTHING;

-- name: lease_sink :one
-- Take or keep a broker for a relay: free, its own, past its time, or of a relay that is dead (nobody
-- holds its lock). No row: another relay feeds it.
-- Params: $1 text sink, $2 int relay number, $3 timestamptz now, $4 timestamptz until,
-- $5 int key of the relays' locks
UPDATE sinks SET leased_by = $2, leased_until = $4
WHERE sink = $1
  AND (leased_by IS NULL
       OR leased_by = $2
       OR leased_until <= $3
       OR leased_by NOT IN (
         SELECT l.objid::int FROM pg_locks l
         WHERE l.locktype = 'advisory' AND l.classid = $5::int::oid AND l.objsubid = 2 AND l.granted
           AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())))
RETURNING last_event_no, (SELECT last_event_no FROM event_counter) AS newest;

-- name: advance_sink :one
-- Note that a broker has every event up to a number. No row: it is another relay's by now.
-- Params: $1 text sink, $2 int relay number, $3 bigint from, $4 bigint to, $5 timestamptz until
UPDATE sinks SET last_event_no = $4, leased_until = $5
WHERE sink = $1 AND leased_by = $2 AND last_event_no = $3 AND $4 > $3
RETURNING last_event_no, (SELECT last_event_no FROM event_counter) AS newest;

-- name: release_sink :execute
-- Leave a broker to whichever relay comes next.
-- Params: $1 text sink, $2 int relay number
UPDATE sinks SET leased_by = NULL, leased_until = NULL WHERE sink = $1 AND leased_by = $2;
