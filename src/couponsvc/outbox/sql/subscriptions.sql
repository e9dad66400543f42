-- Where partners want their events sent, and what became of them. Another partner's subscription is
-- none: every statement of a partner's request asks for the partner too. A moment that the caller does
-- not give is Postgres' own, by which relays go.

-- name: lock_partner :value
-- One at a time changes the number of a partner's subscriptions.
-- Params: $1 int partner_no
SELECT partner_no FROM partners WHERE partner_no = $1 FOR NO KEY UPDATE;

-- name: number_drops :many
-- Drops of these names that the partner may see.
-- Params: $1 int partner_no, $2 text[] drop_id
SELECT d.drop_id, d.drop_no
FROM drops d
JOIN drop_partners dp USING (drop_no)
WHERE dp.partner_no = $1 AND d.drop_id = ANY ($2::text[])
ORDER BY d.drop_no;

-- name: count_subscriptions :one
-- How many subscriptions a partner has, and the one that says just this and works, if there is one.
-- Params: $1 int partner_no, $2 text url, $3 text[] types, $4 int[] drop_nos
SELECT
  count(*) AS subscription_count,
  min(subscription_no) FILTER (
    WHERE disabled_at IS NULL AND url = $2 AND types = $3::text[] AND drop_nos IS NOT DISTINCT FROM $4::int[]
  ) AS same_no
FROM subscriptions
WHERE partner_no = $1 AND deleted_at IS NULL;

-- name: next_subscription_no :value
-- The number comes first, because its secret is sealed for it.
SELECT nextval(pg_get_serial_sequence('subscriptions', 'subscription_no'))::int;

-- name: insert_subscription :value
-- Params: $1 int subscription_no, $2 int partner_no, $3 text url, $4 text[] types, $5 int[] drop_nos,
-- $6 bytea sealed_secret
INSERT INTO subscriptions (subscription_no, partner_no, url, types, drop_nos, sealed_secret)
OVERRIDING SYSTEM VALUE
VALUES ($1, $2, $3, $4, $5, $6)
RETURNING subscription_no;

-- name: read_subscriptions :many
-- The subscriptions of a partner, or the one of this number; never their secrets.
-- Params: $1 int partner_no, $2 int subscription_no or null
SELECT
  s.subscription_no, s.partner_no, s.url, s.types, s.created_at, s.disabled_at, s.failure_count, s.held_until,
  s.previous_until,
  CASE WHEN s.drop_nos IS NOT NULL THEN
    ARRAY(SELECT d.drop_id FROM drops d WHERE d.drop_no = ANY (s.drop_nos) ORDER BY d.drop_id)
  END AS drop_ids
FROM subscriptions s
WHERE s.partner_no = $1 AND s.deleted_at IS NULL AND ($2::int IS NULL OR s.subscription_no = $2)
ORDER BY s.subscription_no;

-- name: delete_subscription :value
-- Nothing is sent any more, whatever is queued.
-- Params: $1 int partner_no, $2 int subscription_no, $3 timestamptz now or null
UPDATE subscriptions SET deleted_at = coalesce($3::timestamptz, now())
WHERE partner_no = $1 AND subscription_no = $2 AND deleted_at IS NULL
RETURNING subscription_no;

-- name: empty_queue :execute
-- Forget what waits for a subscription, up to a number; the relay forgets the rest, and what it is at.
-- Params: $1 int subscription_no, $2 int how many at most
DELETE FROM deliveries
WHERE (subscription_no, event_no) IN (
  SELECT subscription_no, event_no FROM deliveries
  WHERE subscription_no = $1 AND leased_by IS NULL
  LIMIT $2
  FOR UPDATE SKIP LOCKED
);

-- name: rotate_secret :value
-- Replace a secret. The one before signs on for $5, unless that would drop a secret for one that nobody
-- has seen: asked again within $6, the newest alone is replaced.
-- Params: $1 int partner_no, $2 int subscription_no, $3 bytea sealed_secret, $4 timestamptz now or null,
-- $5 interval for which both sign, $6 interval within which this one repeats the rotation before
UPDATE subscriptions
SET sealed_secret = $3,
    previous_sealed_secret =
      CASE WHEN previous_until >= coalesce($4::timestamptz, now()) + $5::interval - $6::interval
           THEN previous_sealed_secret ELSE sealed_secret END,
    previous_until = coalesce($4::timestamptz, now()) + $5::interval
WHERE partner_no = $1 AND subscription_no = $2 AND deleted_at IS NULL
RETURNING subscription_no;

-- name: wipe_ended_secrets :execute
-- Remove secrets that were replaced and sign no more. A row that somebody is at is left to the next turn.
-- Params: $1 timestamptz now
WITH ended AS (
  SELECT s.subscription_no FROM subscriptions s
  WHERE s.previous_until <= $1
  FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE subscriptions s SET previous_sealed_secret = NULL, previous_until = NULL
FROM ended e
WHERE s.subscription_no = e.subscription_no AND s.previous_until <= $1;

-- name: find_ended :many
-- Which of these subscriptions are no more.
-- Params: $1 int[] subscription_no
SELECT n.subscription_no
FROM unnest($1::int[]) AS n (subscription_no)
WHERE NOT EXISTS (
  SELECT FROM subscriptions s WHERE s.subscription_no = n.subscription_no AND s.deleted_at IS NULL);

-- name: request_test :value
-- Have a test event numbered and delivered to this subscription alone.
-- Params: $1 int partner_no, $2 int subscription_no, $3 text type
INSERT INTO outbox (type, subscription_no)
SELECT $3, s.subscription_no FROM subscriptions s
WHERE s.partner_no = $1 AND s.subscription_no = $2 AND s.deleted_at IS NULL AND s.disabled_at IS NULL
RETURNING subscription_no;

-- name: lift_hold :execute
-- Whoever asks for something to be sent says that the receiver is well: try at once.
-- Params: $1 int subscription_no
UPDATE subscriptions SET held_until = NULL WHERE subscription_no = $1 AND held_until IS NOT NULL;
