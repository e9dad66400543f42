-- name: newest_event_no :value
-- The newest event of all partners. Numbers up to it are committed: whoever reads it, and events
-- afterwards, has missed none of them.
SELECT last_event_no FROM event_counter;
