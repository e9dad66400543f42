-- name: load_figures :many
-- What a drainer must know of a drop before its first commit.
-- Params: $1 int[] drop_no
SELECT d.drop_no, d.epoch, d.issued, d.quantity, p.program_no, p.sealed_code_key
FROM drops d
JOIN programs p USING (program_no)
WHERE d.drop_no = ANY ($1::int[]);

-- name: commit_to_drop :many
-- The fast path for one drop, a whole transaction in one statement: vouchers, count and event, if
-- epoch and count of issued are the foreseen ones and units remain afterwards; else no row, nothing.
-- A duplicate fails the whole statement: an insert that skips it instead (ON CONFLICT) costs twice
-- as much per row. The UPDATE takes the row lock, sees the newest row, and only then reads the clock,
-- so that later numbers are never older.
-- Columns of grants are texts joined by ASCII 31, because the driver takes ten times as long over
-- arrays. A column in which all grants agree is empty; the value stands in the shared parameter.
-- Params: $1 int drop_no, $2 int epoch, $3 int issued as foreseen, $4 int grants; shared: $5 int
-- partner_no, $6 int ordinal, $7 text channel, $8 text region; per grant: $9 person_token,
-- $10 out_request_no, $11 code, $12 partner_no, $13 ordinal, $14 channel, $15 region; see lock_source:
-- $16 smallint shard, $17 text run_id, $18 text replication_id
WITH source AS MATERIALIZED (
  SELECT coalesce(checking_run_id, run_id) = $17::text
         AND coalesce(checking_replication_id, replication_id) = $18::text AS used
  FROM blessings
  WHERE shard = $16::smallint
  FOR SHARE
),
advanced AS (
  UPDATE drops
  SET issued = issued + $4::int
  WHERE drop_no = $1::int AND epoch = $2::int AND issued = $3::int AND issued + $4::int < quantity
        AND coalesce((SELECT used FROM source), true)
  RETURNING drop_no, issued, date_trunc('milliseconds', clock_timestamp()) AS issued_at
),
inserted AS (
  INSERT INTO vouchers (drop_no, seq, partner_no, ordinal, issued_at, person_token, out_request_no,
                        code, channel, region)
  SELECT a.drop_no, $3::int + g.place, coalesce(g.partner_no, $5::int), coalesce(g.ordinal, $6::int),
         a.issued_at, g.person_token, g.out_request_no, g.code, coalesce(g.channel, $7::text),
         coalesce(g.region, $8::text)
  FROM advanced a
  CROSS JOIN unnest(string_to_array($9, U&'\001F'), string_to_array($10, U&'\001F'),
                    string_to_array($11, U&'\001F'), string_to_array($12, U&'\001F')::int[],
                    string_to_array($13, U&'\001F')::int[], string_to_array($14, U&'\001F'),
                    string_to_array($15, U&'\001F')) WITH ORDINALITY
    AS g (person_token, out_request_no, code, partner_no, ordinal, channel, region, place)
),
told AS (
  INSERT INTO outbox (type, drop_no, first_seq, last_seq, data, occurred_at)
  SELECT 'voucher.issued', drop_no, $3::int + 1, issued, '{}', issued_at
  FROM advanced
)
SELECT (extract(epoch FROM issued_at) * 1000)::bigint AS issued_ms
FROM advanced;

-- name: commit_to_drops :many
-- The fast path for several drops, and for a drop's last unit: every drop whose epoch and count of
-- issued are the foreseen ones gets its vouchers, its count and its events; the others only report.
-- The rest as in commit_to_drop. The figures are those of the locked, newest rows, not of the
-- statement's snapshot; drops are locked in one order, so that drainers do not block each other.
-- Params: arrays with one element per drop, $1 int[] drop_no, $2 int[] epoch, $3 int[] issued as
-- foreseen, $4 int[] grants; shared: $5 int[] partner_no, $6 int[] ordinal, $7 text[] channel,
-- $8 text[] region; the drop's grants: $9 text[] person_token, $10 text[] out_request_no,
-- $11 text[] code, $12 text[] partner_no, $13 text[] ordinal, $14 text[] channel, $15 text[] region;
-- see lock_source: $16 smallint shard, $17 text run_id, $18 text replication_id
WITH source AS MATERIALIZED (
  SELECT coalesce(checking_run_id, run_id) = $17::text
         AND coalesce(checking_replication_id, replication_id) = $18::text AS used
  FROM blessings
  WHERE shard = $16::smallint
  FOR SHARE
),
locked AS MATERIALIZED (
  SELECT drop_no, epoch, issued, quantity
  FROM drops
  WHERE drop_no = ANY ($1::int[])
        AND (SELECT count(*) FROM source) >= 0 -- locked first: everybody takes locks in one order
  ORDER BY drop_no
  FOR NO KEY UPDATE
),
moment AS MATERIALIZED ( -- read after the locks
  SELECT date_trunc('milliseconds', clock_timestamp()) AS issued_at FROM (SELECT count(*) FROM locked) held
),
fitting AS MATERIALIZED (
  SELECT f.*, l.quantity, m.issued_at
  FROM moment m
  CROSS JOIN locked l
  JOIN unnest($1::int[], $2::int[], $3::int[], $4::int[], $5::int[], $6::int[], $7::text[], $8::text[],
              $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[])
    AS f (drop_no, epoch, issued, grants, partner_no, ordinal, channel, region,
          person_tokens, out_request_nos, codes, partner_nos, ordinals, channels, regions)
    ON f.drop_no = l.drop_no AND f.epoch = l.epoch AND f.issued = l.issued
  WHERE l.issued + f.grants <= l.quantity
        AND coalesce((SELECT used FROM source), true)
),
advanced AS (
  UPDATE drops d
  SET issued = f.issued + f.grants,
      sold_out_at = CASE WHEN f.issued + f.grants = f.quantity THEN f.issued_at ELSE d.sold_out_at END
  FROM fitting f
  WHERE d.drop_no = f.drop_no
),
inserted AS (
  INSERT INTO vouchers (drop_no, seq, partner_no, ordinal, issued_at, person_token, out_request_no,
                        code, channel, region)
  SELECT f.drop_no, f.issued + g.place, coalesce(g.partner_no, f.partner_no), coalesce(g.ordinal, f.ordinal),
         f.issued_at, g.person_token, g.out_request_no, g.code, coalesce(g.channel, f.channel),
         coalesce(g.region, f.region)
  FROM fitting f
  CROSS JOIN LATERAL unnest(
    string_to_array(f.person_tokens, U&'\001F'), string_to_array(f.out_request_nos, U&'\001F'),
    string_to_array(f.codes, U&'\001F'), string_to_array(f.partner_nos, U&'\001F')::int[],
    string_to_array(f.ordinals, U&'\001F')::int[], string_to_array(f.channels, U&'\001F'),
    string_to_array(f.regions, U&'\001F')) WITH ORDINALITY
    AS g (person_token, out_request_no, code, partner_no, ordinal, channel, region, place)
),
told AS (
  INSERT INTO outbox (type, drop_no, first_seq, last_seq, data, occurred_at)
  SELECT 'voucher.issued', drop_no, issued + 1, issued + grants, '{}', issued_at
  FROM fitting
  UNION ALL
  SELECT 'drop.sold_out', drop_no, NULL, NULL, jsonb_build_object('quantity', quantity), issued_at
  FROM fitting
  WHERE issued + grants = quantity
)
SELECT l.drop_no, l.epoch, l.issued + coalesce(f.grants, 0) AS issued, l.quantity,
       coalesce(f.grants, 0) AS vouchers, (extract(epoch FROM f.issued_at) * 1000)::bigint AS issued_ms
FROM locked l
LEFT JOIN fitting f USING (drop_no)
ORDER BY l.drop_no;

-- name: lock_source :value
-- Whether grants of a server may be committed: it is being checked, or blessed while none is checked.
-- Null where none was ever blessed, so that none was ever asked. Until the transaction ends nobody
-- can begin to check another one (decision 0019).
-- Params: $1 smallint shard, $2 text run_id, $3 text replication_id
SELECT coalesce(checking_run_id, run_id) = $2 AND coalesce(checking_replication_id, replication_id) = $3
FROM blessings
WHERE shard = $1
FOR SHARE;

-- name: lock_drops :many
-- The slow path goes on with this: from here on nobody else issues from these drops.
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
