-- What time it is, for relays.

-- name: look :value
-- The moment at which this runs, not the one at which its transaction began.
SELECT clock_timestamp();
