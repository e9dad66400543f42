-- name: has_work :value
-- Whether a turn would find anything; read without the counter's lock, because an idle relay asks
-- twenty times a second and a lock is a write.
-- Params: $1 text[] type, $2 int[] drop_no to leave alone
SELECT EXISTS (
  SELECT FROM outbox WHERE type = ANY ($1::text[]) AND (drop_no IS NULL OR drop_no <> ALL ($2::int[]))
);

-- name: count_unknown :value
-- Rows of kinds that this version does not know; a newer one will tell of them.
-- Params: $1 text[] type
SELECT count(*) FROM outbox WHERE type <> ALL ($1::text[]);

-- name: lock_counter :value
-- The newest event number; no row where another relay is at it. Whoever has the row numbers alone
-- until the transaction ends.
SELECT last_event_no FROM event_counter FOR UPDATE SKIP LOCKED;

-- name: take_rows :many
-- The oldest outbox rows that may go, with what partners were told of their drops. Rows of one drop
-- become visible in the order of their numbers, because they are written under the drop's lock.
-- Params: $1 text[] type, $2 int[] drop_no to leave alone, $3 int limit
SELECT
  o.outbox_no, o.type, o.drop_no, o.subscription_no, o.partner_no, o.first_seq, o.last_seq,
  o.data::text AS data, o.occurred_at, coalesce(t.told_seq, 0) AS told_seq, coalesce(t.opened_told, false) AS opened_told,
  coalesce(t.ended_told, false) AS ended_told
FROM (
  SELECT *
  FROM outbox
  WHERE type = ANY ($1::text[]) AND (drop_no IS NULL OR drop_no <> ALL ($2::int[]))
  ORDER BY outbox_no
  LIMIT $3
) o
LEFT JOIN drop_tellings t USING (drop_no)
ORDER BY o.outbox_no;

-- name: fan_out :one
-- Turn tellings into events, one per partner that may know, and queue their deliveries: a telling of
-- vouchers goes to their owners, one of a drop to its present partners or to the one it names, a test to
-- its subscription's.
-- Answers how many events and deliveries there are, who has news, and by telling of vouchers how many
-- of them have an owner.
-- Params: $1 bigint newest event_no, $2 timestamptz now; one element per telling, in order: $3 text[] type,
-- $4 text[] public type, $5 int[] drop_no, $6 int[] subscription_no, $7 int[] partner_no, $8 int[] first_seq,
-- $9 int[] last_seq, $10 text[] data, $11 timestamptz[] occurred_at
WITH told AS MATERIALIZED (
  SELECT *
  FROM unnest($3::text[], $4::text[], $5::int[], $6::int[], $7::int[], $8::int[], $9::int[], $10::text[],
              $11::timestamptz[]) WITH ORDINALITY
    AS t (type, public_type, drop_no, subscription_no, partner_no, first_seq, last_seq, data, occurred_at,
          place)
),
entitled AS (
  SELECT t.place, v.partner_no, v.first_seq, v.last_seq, v.voucher_count
  FROM told t
  CROSS JOIN LATERAL ( -- an aggregate, so that each telling reads its own vouchers by number
    SELECT partner_no, min(seq) AS first_seq, max(seq) AS last_seq, count(*)::int AS voucher_count
    FROM vouchers
    WHERE drop_no = t.drop_no AND seq BETWEEN t.first_seq AND t.last_seq
    GROUP BY partner_no
  ) v
  WHERE t.first_seq IS NOT NULL
  UNION ALL
  SELECT t.place, d.partner_no, NULL, NULL, 0
  FROM told t
  JOIN drop_partners d USING (drop_no)
  WHERE t.first_seq IS NULL AND t.partner_no IS NULL
  UNION ALL
  SELECT t.place, t.partner_no, NULL, NULL, 0
  FROM told t
  WHERE t.partner_no IS NOT NULL
  UNION ALL
  SELECT t.place, s.partner_no, NULL, NULL, 0
  FROM told t
  JOIN subscriptions s USING (subscription_no)
  WHERE s.deleted_at IS NULL
),
numbered AS MATERIALIZED (
  SELECT
    t.type, t.public_type, t.drop_no, t.subscription_no, t.data, t.occurred_at, e.*,
    $1::bigint + row_number() OVER (ORDER BY e.place, e.partner_no) AS event_no,
    row_number() OVER (PARTITION BY t.drop_no, e.partner_no ORDER BY e.place) AS step
  FROM entitled e
  JOIN told t USING (place)
),
counted AS (
  INSERT INTO event_sequences AS s (drop_no, partner_no, last_sequence)
  SELECT drop_no, partner_no, max(step) FROM numbered WHERE drop_no IS NOT NULL GROUP BY drop_no, partner_no
  ON CONFLICT (drop_no, partner_no) DO UPDATE SET last_sequence = s.last_sequence + excluded.last_sequence
  RETURNING drop_no, partner_no, last_sequence
),
begun AS (
  SELECT c.drop_no, c.partner_no, c.last_sequence - max(n.step) AS sequence
  FROM counted c
  JOIN numbered n USING (drop_no, partner_no)
  GROUP BY c.drop_no, c.partner_no, c.last_sequence
),
written AS (
  INSERT INTO events (event_no, partner_no, drop_no, sequence, type, first_seq, last_seq, voucher_count, data,
                      occurred_at)
  SELECT n.event_no, n.partner_no, n.drop_no, b.sequence + n.step, n.type, n.first_seq, n.last_seq,
         n.voucher_count, n.data, n.occurred_at
  FROM numbered n
  LEFT JOIN begun b USING (drop_no, partner_no)
),
queued AS (
  INSERT INTO deliveries (subscription_no, event_no, queued_at, due_at)
  SELECT s.subscription_no, n.event_no, $2::timestamptz,
    CASE -- a test goes before what waits, so that it is the next probe where the endpoint is failing
      WHEN n.subscription_no IS NULL THEN $2::timestamptz
      ELSE least($2::timestamptz, (SELECT min(d.due_at) - interval '1 microsecond' FROM deliveries d
                                   WHERE d.subscription_no = s.subscription_no AND d.parked_at IS NULL))
    END
  FROM numbered n
  JOIN subscriptions s USING (partner_no)
  WHERE s.deleted_at IS NULL AND s.disabled_at IS NULL
    AND CASE
          WHEN n.subscription_no IS NOT NULL THEN n.subscription_no = s.subscription_no
          ELSE n.public_type = ANY (s.types) AND (s.drop_nos IS NULL OR n.drop_no = ANY (s.drop_nos))
        END
  RETURNING subscription_no
)
SELECT
  (SELECT count(*) FROM numbered) AS events,
  (SELECT count(*) FROM queued) AS deliveries,
  (SELECT coalesce(string_agg(DISTINCT partner_no::text, ','), '') FROM numbered) AS partners,
  ARRAY(
    SELECT coalesce((SELECT sum(voucher_count) FROM numbered n WHERE n.place = t.place), 0)::int
    FROM told t
    ORDER BY t.place
  ) AS owned_counts;

-- name: advance_counter :execute
-- Params: $1 bigint newest event_no
UPDATE event_counter SET last_event_no = $1::bigint;

-- name: remove_rows :execute
-- Params: $1 bigint[] outbox_no
DELETE FROM outbox WHERE outbox_no = ANY ($1::bigint[]);

-- name: advance_tellings :execute
-- How far partners are told of drops now. Only the holder of the counter's lock writes these rows.
-- Params: $1 int[] drop_no, $2 int[] told_seq, $3 boolean[] opened_told, $4 boolean[] ended_told
INSERT INTO drop_tellings (drop_no, told_seq, opened_told, ended_told)
SELECT * FROM unnest($1::int[], $2::int[], $3::boolean[], $4::boolean[])
ON CONFLICT (drop_no) DO UPDATE
SET told_seq = excluded.told_seq, opened_told = excluded.opened_told, ended_told = excluded.ended_told;

-- name: announce :execute
-- Say after the commit who has news.
-- Params: $1 text partner_nos joined by commas
SELECT pg_notify('couponsvc_events', $1);

-- name: windows_due :many
-- Drops whose window has opened or ended without partners being told, and those that were told of an
-- end that was then put off. What was closed has said so itself.
-- Params: $1 timestamptz now, $2 int[] drop_no to leave alone, $3 int limit
SELECT
  d.drop_no, d.opens_at, d.closes_at, d.quantity, d.status, coalesce(t.told_seq, 0) AS told_seq,
  coalesce(t.opened_told, false) AS opened_told, coalesce(t.ended_told, false) AS ended_told
FROM drops d
LEFT JOIN drop_tellings t USING (drop_no)
WHERE d.status <> 2 AND d.drop_no <> ALL ($2::int[]) AND d.opens_at <= $1
  AND (NOT coalesce(t.opened_told, false) OR coalesce(t.ended_told, false) <> (d.closes_at <= $1))
ORDER BY d.opens_at, d.drop_no
LIMIT $3;

-- name: windows_of :many
-- The windows of these drops (columns as windows_due).
-- Params: $1 int[] drop_no
SELECT
  d.drop_no, d.opens_at, d.closes_at, d.quantity, d.status, coalesce(t.told_seq, 0) AS told_seq,
  coalesce(t.opened_told, false) AS opened_told, coalesce(t.ended_told, false) AS ended_told
FROM drops d
LEFT JOIN drop_tellings t USING (drop_no)
WHERE d.drop_no = ANY ($1::int[]);
