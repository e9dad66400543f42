-- name: newest_event_no :value
-- The newest event of all partners. Numbers up to it are committed: whoever reads it, and events
-- afterwards, has missed none of them.
SELECT last_event_no FROM event_counter;

-- name: partners_between :many
-- Whose events these are.
-- Params: $1 bigint event_no, after it; $2 bigint event_no, up to it
SELECT DISTINCT partner_no FROM events WHERE event_no > $1 AND event_no <= $2;
