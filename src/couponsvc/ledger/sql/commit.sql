-- name: load_figures :many
-- What a drainer must know of a drop before its first commit.
-- Params: $1 int[] drop_no
SELECT d.drop_no, d.epoch, d.issued, p.program_no, p.sealed_code_key
FROM drops d
JOIN programs p USING (program_no)
WHERE d.drop_no = ANY ($1::int[]);

-- name: commit_grants :many
-- The fast path, a whole transaction in one statement: every drop whose epoch and count of issued
-- are the foreseen ones gets its vouchers, its count and its events; the others only report.
-- Fewer rows than foreseen (a duplicate) fail the drop's CHECK and with it the whole statement.
-- The figures are those of the locked, newest rows, not of the statement's snapshot.
-- Params: per drop $1 int[] drop_no, $2 int[] epoch, $3 int[] issued as foreseen, $4 int[] grants;
-- per grant, numbers joined by commas because the driver takes ten times as long over int[]:
-- $5 drop_no, $6 seq, $7 partner_no, $8 ordinal, $9 text[] person_token, $10 text[] out_request_no, $11 text[] code, $12 text[] channel,
-- $13 text[] region
WITH locked AS MATERIALIZED (
  SELECT drop_no, epoch, issued, quantity
  FROM drops
  WHERE drop_no = ANY ($1::int[])
  ORDER BY drop_no
  FOR NO KEY UPDATE
),
moment AS MATERIALIZED ( -- read after the locks, so that later numbers are never older
  SELECT date_trunc('milliseconds', clock_timestamp()) AS issued_at FROM (SELECT count(*) FROM locked) held
),
fitting AS MATERIALIZED (
  SELECT l.drop_no, l.issued, foreseen.grants
  FROM locked l
  JOIN unnest($1::int[], $2::int[], $3::int[], $4::int[]) AS foreseen (drop_no, epoch, issued, grants)
    ON foreseen.drop_no = l.drop_no AND foreseen.epoch = l.epoch AND foreseen.issued = l.issued
  WHERE l.issued + foreseen.grants <= l.quantity
),
inserted AS (
  INSERT INTO vouchers (drop_no, seq, partner_no, ordinal, issued_at, person_token, out_request_no,
                        code, channel, region)
  SELECT g.drop_no, g.seq, g.partner_no, g.ordinal, moment.issued_at, g.person_token,
         g.out_request_no, g.code, coalesce(g.channel, ''), coalesce(g.region, '') -- '' splits into nothing
  FROM moment
  CROSS JOIN unnest(string_to_array($5, U&'\001F')::int[], string_to_array($6, U&'\001F')::int[],
                    string_to_array($7, U&'\001F')::int[], string_to_array($8, U&'\001F')::int[],
                    string_to_array($9, U&'\001F'), string_to_array($10, U&'\001F'),
                    string_to_array($11, U&'\001F'), string_to_array($12, U&'\001F'),
                    string_to_array($13, U&'\001F'))
    AS g (drop_no, seq, partner_no, ordinal, person_token, out_request_no, code, channel, region)
  WHERE g.drop_no IN (SELECT drop_no FROM fitting)
  ON CONFLICT DO NOTHING
  RETURNING drop_no
),
counted AS (
  SELECT drop_no, count(*)::int AS vouchers FROM inserted GROUP BY drop_no
),
advanced AS (
  UPDATE drops d
  SET issued = CASE WHEN c.vouchers = f.grants THEN f.issued + f.grants ELSE -1 END,
      sold_out_at = CASE WHEN f.issued + f.grants = d.quantity THEN m.issued_at ELSE d.sold_out_at END
  FROM moment m, fitting f
  LEFT JOIN counted c USING (drop_no)
  WHERE d.drop_no = f.drop_no
  RETURNING d.drop_no, d.issued, d.quantity, f.grants
),
told AS (
  INSERT INTO outbox (type, drop_no, first_seq, last_seq, data, occurred_at)
  SELECT 'voucher.issued', a.drop_no, a.issued - a.grants + 1, a.issued, '{}', m.issued_at
  FROM advanced a, moment m
  UNION ALL
  SELECT 'drop.sold_out', a.drop_no, NULL, NULL, jsonb_build_object('quantity', a.quantity), m.issued_at
  FROM advanced a, moment m
  WHERE a.issued = a.quantity
)
SELECT l.drop_no, l.epoch, coalesce(a.issued, l.issued) AS issued, coalesce(a.grants, 0) AS vouchers,
       (extract(epoch FROM m.issued_at) * 1000)::bigint AS issued_ms
FROM locked l
CROSS JOIN moment m
LEFT JOIN advanced a USING (drop_no)
ORDER BY l.drop_no;

-- name: lock_drops :many
-- The slow path opens with this: from here on nobody else issues from these drops.
-- Params: $1 int[] drop_no
SELECT drop_no, epoch, issued, quantity, per_person_limit
FROM drops
WHERE drop_no = ANY ($1::int[])
ORDER BY drop_no
FOR NO KEY UPDATE;

-- name: commit_moment :value
-- The moment that every voucher of a transaction bears, in milliseconds; read after the locks.
SELECT (extract(epoch FROM date_trunc('milliseconds', clock_timestamp())) * 1000)::bigint;

-- name: insert_vouchers :execute
-- The slow path's vouchers; here a duplicate is an error, because standing rows were read before.
-- Params: $1 bigint issued_ms, $2 int[] drop_no, $3 int[] seq, $4 int[] partner_no, $5 int[] ordinal,
-- $6 text[] person_token, $7 text[] out_request_no, $8 text[] code, $9 text[] channel, $10 text[] region
INSERT INTO vouchers (issued_at, drop_no, seq, partner_no, ordinal, person_token, out_request_no, code,
                      channel, region)
SELECT to_timestamp(0) + $1::bigint * interval '1 millisecond', g.*
FROM unnest($2::int[], $3::int[], $4::int[], $5::int[], $6::text[], $7::text[], $8::text[], $9::text[],
            $10::text[]) AS g;

-- name: advance_drops :execute
-- Count the slow path's vouchers and tell of them, as the fast path does.
-- Params: $1 bigint issued_ms, $2 int[] drop_no, $3 int[] vouchers
WITH moment AS (
  SELECT to_timestamp(0) + $1::bigint * interval '1 millisecond' AS issued_at
),
advanced AS (
  UPDATE drops d
  SET issued = d.issued + c.vouchers,
      sold_out_at = CASE WHEN d.issued + c.vouchers = d.quantity THEN m.issued_at ELSE d.sold_out_at END
  FROM moment m, unnest($2::int[], $3::int[]) AS c (drop_no, vouchers)
  WHERE d.drop_no = c.drop_no
  RETURNING d.drop_no, d.issued, d.quantity, c.vouchers
)
INSERT INTO outbox (type, drop_no, first_seq, last_seq, data, occurred_at)
SELECT 'voucher.issued', a.drop_no, a.issued - a.vouchers + 1, a.issued, '{}', m.issued_at
FROM advanced a, moment m
UNION ALL
SELECT 'drop.sold_out', a.drop_no, NULL, NULL, jsonb_build_object('quantity', a.quantity), m.issued_at
FROM advanced a, moment m
WHERE a.issued = a.quantity;

-- name: keep_dead_letter :execute
-- Keep a stream entry that no version could read.
-- Params: $1 smallint shard, $2 text entry_id, $3 bytea payload, $4 text reason
INSERT INTO dead_letters (shard, entry_id, payload, reason)
VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING;
