-- name: find_by_requests :many
-- Vouchers that stand for these numbers, any drop, any person.
-- Params: $1 int[] partner_no, $2 text[] out_request_no (same length)
SELECT
  v.drop_no, v.seq, v.partner_no, v.ordinal,
  (extract(epoch FROM v.issued_at) * 1000)::bigint AS issued_ms,
  v.person_token, v.out_request_no, v.code, v.channel, v.region
FROM unnest($1::int[], $2::text[]) AS asked (partner_no, out_request_no)
JOIN vouchers v ON v.partner_no = asked.partner_no AND v.out_request_no = asked.out_request_no;

-- name: find_by_persons :many
-- Vouchers that these persons hold of these drops.
-- Params: $1 int[] drop_no, $2 int[] partner_no, $3 text[] person_token (same length)
SELECT
  v.drop_no, v.seq, v.partner_no, v.ordinal,
  (extract(epoch FROM v.issued_at) * 1000)::bigint AS issued_ms,
  v.person_token, v.out_request_no, v.code, v.channel, v.region
FROM unnest($1::int[], $2::int[], $3::text[]) AS asked (drop_no, partner_no, person_token)
JOIN vouchers v
  ON v.drop_no = asked.drop_no
  AND v.partner_no = asked.partner_no
  AND v.person_token = asked.person_token;

-- name: find_voucher :one
-- One voucher by its name.
-- Params: $1 int drop_no, $2 int seq
SELECT
  drop_no, seq, partner_no, ordinal, (extract(epoch FROM issued_at) * 1000)::bigint AS issued_ms,
  person_token, out_request_no, code, channel, region
FROM vouchers
WHERE drop_no = $1 AND seq = $2;

-- name: find_by_person :many
-- What one person of one partner holds of a drop.
-- Params: $1 int drop_no, $2 text person_token, $3 int partner_no, $4 int limit
SELECT
  drop_no, seq, partner_no, ordinal, (extract(epoch FROM issued_at) * 1000)::bigint AS issued_ms,
  person_token, out_request_no, code, channel, region
FROM vouchers
WHERE drop_no = $1 AND partner_no = $3 AND person_token = $2
ORDER BY ordinal
LIMIT $4;

-- name: find_by_person_of_any_partner :many
-- The same for operators and auditors: the drop's partners, each with this pseudonym.
-- Params: $1 int drop_no, $2 text person_token, $3 int limit
SELECT
  v.drop_no, v.seq, v.partner_no, v.ordinal,
  (extract(epoch FROM v.issued_at) * 1000)::bigint AS issued_ms,
  v.person_token, v.out_request_no, v.code, v.channel, v.region
FROM partners p
JOIN vouchers v ON v.drop_no = $1 AND v.partner_no = p.partner_no AND v.person_token = $2
ORDER BY v.partner_no, v.ordinal
LIMIT $3;

-- name: page :many
-- Vouchers of a drop in order of their numbers.
-- Params: $1 int drop_no, $2 int after_seq, $3 int limit
SELECT
  drop_no, seq, partner_no, ordinal, (extract(epoch FROM issued_at) * 1000)::bigint AS issued_ms,
  person_token, out_request_no, code, channel, region
FROM vouchers
WHERE drop_no = $1 AND seq > $2
ORDER BY seq
LIMIT $3;
