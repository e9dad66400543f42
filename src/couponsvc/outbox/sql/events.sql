-- name: by_numbers :many
-- Events with what their documents need, in order. An event has one row per moment of issue: its
-- vouchers as one text, joined by ASCII 31 (seq, code, person_token, out_request_no, seq, …), because
-- the driver takes ten times as long over a row for each. Rows are in the order of numbers, not of
-- moments: a clock may be set back between commits that one event tells of.
-- Params: $1 bigint[] event_no
SELECT
  e.event_no, e.partner_no, e.drop_no, e.sequence, e.type, e.voucher_count, e.data, p.partner_id, d.drop_id,
  d.face_value_fen, d.min_spend_fen, d.valid_for_ms,
  (extract(epoch FROM e.occurred_at) * 1000)::bigint AS occurred_ms,
  (extract(epoch FROM v.issued_at) * 1000)::bigint AS issued_ms, v.vouchers,
  v.first_seq, v.last_seq
FROM events e
JOIN partners p USING (partner_no)
LEFT JOIN drops d USING (drop_no)
LEFT JOIN LATERAL (
  SELECT
    issued_at, min(seq) AS first_seq, max(seq) AS last_seq,
    string_agg(
      concat_ws(U&'\001F', seq, code, person_token, out_request_no), U&'\001F' ORDER BY seq
    ) AS vouchers
  FROM vouchers
  WHERE drop_no = e.drop_no AND seq BETWEEN e.first_seq AND e.last_seq
    AND partner_no IS NOT DISTINCT FROM e.partner_no -- written so that no index over partners is considered
  GROUP BY issued_at
) v ON e.first_seq IS NOT NULL
WHERE e.event_no = ANY ($1::bigint[])
ORDER BY e.event_no, v.first_seq;

-- name: page_of_partner :many
-- The numbers of a partner's next events; ends early where their vouchers become many.
-- The partner is one of a list, and the order begins with it, so that only the partner's index serves:
-- else Postgres may walk over everybody's events by number, in search of those of one that has few.
-- Params: $1 int partner_no, $2 bigint after, $3 int limit, $4 int vouchers
SELECT event_no
FROM (
  SELECT event_no, row_number() OVER newer AS place, sum(voucher_count) OVER newer AS voucher_count
  FROM (
    SELECT event_no, voucher_count
    FROM events
    WHERE partner_no = ANY ((SELECT ARRAY[$1::int])::int[]) AND event_no > $2
    ORDER BY partner_no, event_no
    LIMIT $3
  ) e
  WINDOW newer AS (ORDER BY event_no)
) page
WHERE place = 1 OR voucher_count <= $4
ORDER BY event_no;

-- name: page_of_all :many
-- The same over all partners.
-- Params: $1 bigint after, $2 int limit, $3 int vouchers
SELECT event_no
FROM (
  SELECT event_no, row_number() OVER newer AS place, sum(voucher_count) OVER newer AS voucher_count
  FROM (SELECT event_no, voucher_count FROM events WHERE event_no > $1 ORDER BY event_no LIMIT $2) e
  WINDOW newer AS (ORDER BY event_no)
) page
WHERE place = 1 OR voucher_count <= $3
ORDER BY event_no;

-- name: standing_of_partner :one
-- The newest event of all partners, and this partner's newest by its index as above. One statement is
-- one snapshot: of the numbers up to the first, none above the second is this partner's.
-- Params: $1 int partner_no
SELECT last_event_no AS newest, (
  SELECT event_no
  FROM events
  WHERE partner_no = ANY ((SELECT ARRAY[$1::int])::int[])
  ORDER BY partner_no DESC, event_no DESC
  LIMIT 1
) AS latest
FROM event_counter;

-- name: kept :one
-- Which partition of events is the first that is kept (partitions are dropped from the beginning; null:
-- none was made yet), and the newest event of all partners.
SELECT last_event_no AS newest, (
  SELECT min(split_part(c.relname, '_', 2)::bigint)
  FROM pg_inherits i
  JOIN pg_class c ON c.oid = i.inhrelid
  WHERE i.inhparent = 'events'::regclass
) AS partition_no
FROM event_counter;
