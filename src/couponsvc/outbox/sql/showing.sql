-- What operators are shown of events and deliveries: never what is in them.

-- name: number_partner :value
-- Number of a partner by its name.
-- Params: $1 text partner_id
SELECT partner_no FROM partners WHERE partner_id = $1;

-- name: newest_event_no :value
-- The newest event of all partners.
SELECT last_event_no FROM event_counter;

-- name: before_newest_of_partner :value
-- Number before the n newest events of a partner; null where it has none.
-- Params: $1 int partner_no, $2 int n
SELECT min(event_no) - 1
FROM (SELECT event_no FROM events WHERE partner_no = $1 ORDER BY event_no DESC LIMIT $2) newest;

-- name: events_after :many
-- Events of all partners in order.
-- Params: $1 bigint event_no, $2 int limit
SELECT e.event_no, e.occurred_at, p.partner_id, d.drop_id, e.type, e.sequence, e.voucher_count, e.first_seq,
  e.last_seq
FROM (SELECT * FROM events WHERE event_no > $1 ORDER BY event_no LIMIT $2) e
JOIN partners p USING (partner_no)
LEFT JOIN drops d USING (drop_no)
ORDER BY e.event_no;

-- name: events_of_partner_after :many
-- Events of one partner in order.
-- Params: $1 bigint event_no, $2 int limit, $3 int partner_no
SELECT e.event_no, e.occurred_at, p.partner_id, d.drop_id, e.type, e.sequence, e.voucher_count, e.first_seq,
  e.last_seq
FROM (SELECT * FROM events WHERE partner_no = $3 AND event_no > $1 ORDER BY event_no LIMIT $2) e
JOIN partners p USING (partner_no)
LEFT JOIN drops d USING (drop_no)
ORDER BY e.event_no;

-- name: subscriptions :many
-- Every live subscription with what waits for it and how its receiver does.
-- Params: $1 int subscription_no or null
SELECT s.subscription_no, p.partner_id, s.url, s.failure_count, s.held_until, s.disabled_at,
  q.waiting_count, q.delivering_count, q.parked_count, q.oldest_queued_at, a.last_delivered_at
FROM subscriptions s
JOIN partners p USING (partner_no)
CROSS JOIN LATERAL (
  SELECT count(*) FILTER (WHERE parked_at IS NULL AND leased_by IS NULL) AS waiting_count,
    count(*) FILTER (WHERE leased_by IS NOT NULL) AS delivering_count,
    count(*) FILTER (WHERE parked_at IS NOT NULL) AS parked_count,
    min(queued_at) FILTER (WHERE parked_at IS NULL) AS oldest_queued_at
  FROM deliveries
  WHERE subscription_no = s.subscription_no) q
LEFT JOIN LATERAL (
  SELECT attempted_at AS last_delivered_at
  FROM delivery_attempts
  WHERE subscription_no = s.subscription_no AND outcome = 'delivered'
  ORDER BY attempted_at DESC
  LIMIT 1) a ON true
WHERE s.deleted_at IS NULL AND ($1::int IS NULL OR s.subscription_no = $1)
ORDER BY s.subscription_no;

-- name: queued :many
-- Deliveries in the queue, the oldest event first.
-- Params: $1 int subscription_no or null, $2 text state or null: waiting, delivering or parked; $3 int limit
SELECT s.subscription_no, q.event_no, q.state, q.attempt_count, q.queued_at, q.due_at, q.parked_at, q.parked_because
FROM subscriptions s
CROSS JOIN LATERAL (
  SELECT * FROM (
    SELECT *, CASE WHEN parked_at IS NOT NULL THEN 'parked' WHEN leased_by IS NOT NULL THEN 'delivering'
      ELSE 'waiting' END AS state
    FROM deliveries d
    WHERE d.subscription_no = s.subscription_no) of_one
  WHERE $2::text IS NULL OR state = $2
  ORDER BY event_no
  LIMIT $3) q
WHERE $1::int IS NULL OR s.subscription_no = $1
ORDER BY q.event_no, s.subscription_no
LIMIT $3;

-- name: attempts :many
-- The newest attempts to deliver; by subscription, because that is how they are indexed.
-- Params: $1 int subscription_no or null, $2 text outcome or null: delivered, failed or gone; $3 int limit
SELECT s.subscription_no, a.event_no, a.attempt_no, a.attempted_at, a.took_ms, a.status, a.outcome, a.error
FROM subscriptions s
CROSS JOIN LATERAL (
  SELECT *
  FROM delivery_attempts t
  WHERE t.subscription_no = s.subscription_no AND ($2::text IS NULL OR t.outcome = $2)
  ORDER BY attempted_at DESC
  LIMIT $3) a
WHERE $1::int IS NULL OR s.subscription_no = $1
ORDER BY a.attempted_at DESC, a.event_no DESC
LIMIT $3;

-- name: partner_of_subscription :value
-- Whose subscription it is, unless it was deleted.
-- Params: $1 int subscription_no
SELECT partner_no FROM subscriptions WHERE subscription_no = $1 AND deleted_at IS NULL;
