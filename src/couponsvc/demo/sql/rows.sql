-- name: drops :many
-- The demo's drops as they stand.
-- Params: $1 text[] drop_id
SELECT
  drop_no, drop_id, quantity, per_person_limit, issued,
  (extract(epoch FROM opens_at) * 1000)::bigint AS opens_ms,
  face_value_fen, min_spend_fen, valid_for_ms
FROM drops
WHERE drop_id = ANY ($1::text[])
ORDER BY drop_no;

-- name: vouchers :many
-- Every voucher of these drops.
-- Params: $1 int[] drop_no
SELECT
  drop_no, seq, person_token, out_request_no, code,
  (extract(epoch FROM issued_at) * 1000)::bigint AS issued_ms
FROM vouchers
WHERE drop_no = ANY ($1::int[])
ORDER BY drop_no, seq;
