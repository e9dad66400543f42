-- name: read_drops :many
-- Drops of a shard with their counters, as `ledger.drops.drop_of` reads them; without partners,
-- because nothing in Redis depends on who may grab.
-- Params: $1 smallint shard, $2 int[] drop_no or null for all
SELECT
  d.drop_no, d.drop_id, p.program_id, d.template_id, p.region, d.shard, d.epoch, d.version,
  d.status, d.quantity, d.per_person_limit,
  (extract(epoch FROM d.opens_at) * 1000)::bigint AS opens_ms,
  (extract(epoch FROM d.closes_at) * 1000)::bigint AS closes_ms,
  d.face_value_fen, d.min_spend_fen, d.valid_for_ms, '{}'::int[] AS partners, d.issued
FROM drops d
JOIN programs p USING (program_no)
WHERE d.shard = $1 AND ($2::int[] IS NULL OR d.drop_no = ANY ($2::int[]))
ORDER BY d.drop_no;

-- name: read_marks :one
-- Every drop of a shard, as four lists in the same order: whatever changes of a drop moves one of them.
-- Params: $1 smallint shard
SELECT
  coalesce(array_agg(drop_no ORDER BY drop_no), '{}') AS drop_nos,
  coalesce(array_agg(epoch ORDER BY drop_no), '{}') AS epochs,
  coalesce(array_agg(version ORDER BY drop_no), '{}') AS versions,
  coalesce(array_agg(issued ORDER BY drop_no), '{}') AS issued_counts
FROM drops
WHERE shard = $1;

-- name: find_drop_no :value
-- Number of a drop by its name.
-- Params: $1 text drop_id
SELECT drop_no FROM drops WHERE drop_id = $1;

-- name: raise_epochs :many
-- Close epochs for ever: from this commit on their grants are refused, so the drops' vouchers stand
-- still. A new epoch is above whatever Redis has published. Locked in the order of drainers.
-- Params: $1 int[] drop_no, $2 int[] epoch that was read, $3 int[] epoch published in Redis
WITH locked AS (
  SELECT d.drop_no, greatest(d.epoch, lost.published) + 1 AS next_epoch
  FROM unnest($1::int[], $2::int[], $3::int[]) AS lost (drop_no, epoch, published)
  JOIN drops d ON d.drop_no = lost.drop_no AND d.epoch = lost.epoch
  ORDER BY d.drop_no
  FOR NO KEY UPDATE OF d
)
UPDATE drops d SET epoch = next_epoch FROM locked WHERE d.drop_no = locked.drop_no
RETURNING d.drop_no, d.epoch;

-- name: read_holders :many
-- What the holders of some drops hold, each drop's from one number to another: one text of lines, of
-- which every first is a field and every second its note (values/note.py). Lines are made here, because
-- Python would need three times as long for it. A drop without vouchers there has no text. `issued_at`
-- has whole milliseconds, so a double is exact; `extract` would make a numeric and cost half as much again.
-- Params: $1 int[] drop_no, $2 int[] after_seq, $3 int[] last_seq, $4 int vouchers of one drop at most
SELECT span.drop_no, (
  SELECT textsend(string_agg(
    v.ordinal || ':' || v.partner_no || ':' || v.person_token || E'\n'
    || v.out_request_no || ' ' || v.seq || ' ' || (date_part('epoch', v.issued_at) * 1000)::bigint || ' ' || v.code,
    E'\n'
  ))
  FROM (
    SELECT * FROM vouchers
    WHERE drop_no = span.drop_no AND seq > span.after_seq AND seq <= span.last_seq
    ORDER BY seq
    LIMIT $4
  ) v
) AS lines
FROM unnest($1::int[], $2::int[], $3::int[]) AS span (drop_no, after_seq, last_seq);

-- name: prove_numbers :many
-- Vouchers of drops, each after a number that was proven before: how many, and the highest (I3).
-- Params: $1 int[] drop_no, $2 int[] proven_seq
SELECT
  d.drop_no, d.issued,
  (SELECT count(*) FROM vouchers v WHERE v.drop_no = d.drop_no AND v.seq > p.proven_seq)::int AS count_after,
  coalesce((SELECT max(v.seq) FROM vouchers v WHERE v.drop_no = d.drop_no), 0) AS highest_seq
FROM unnest($1::int[], $2::int[]) AS p (drop_no, proven_seq)
JOIN drops d ON d.drop_no = p.drop_no;

-- name: prove_outbox :many
-- Whether what partners were told of and the rows that are still in the outbox tile the numbers of
-- drops up to `issued` (I7), each after a number that was proven before: how many rows do not begin
-- where the one before ended (or what was told), or tell again; of how many vouchers one of both tells.
-- Params: $1 int[] drop_no, $2 int[] proven_seq
SELECT d.drop_no, d.issued, t.break_count, known.seq - p.proven_seq + t.row_count AS told_count
FROM unnest($1::int[], $2::int[]) AS p (drop_no, proven_seq)
JOIN drops d ON d.drop_no = p.drop_no
LEFT JOIN drop_tellings s ON s.drop_no = d.drop_no
CROSS JOIN LATERAL (SELECT greatest(s.told_seq, p.proven_seq) AS seq) known
CROSS JOIN LATERAL (
  SELECT
    (count(*) FILTER (WHERE r.first_seq <> coalesce(r.previous_seq, known.seq) + 1))::int
    + (SELECT count(*) FROM outbox o WHERE o.drop_no = p.drop_no AND o.first_seq <= s.told_seq)::int
      AS break_count,
    coalesce(sum(r.last_seq - r.first_seq + 1), 0)::int AS row_count
  FROM (
    SELECT o.first_seq, o.last_seq, lag(o.last_seq) OVER (ORDER BY o.first_seq) AS previous_seq
    FROM outbox o
    WHERE o.drop_no = p.drop_no AND o.first_seq > known.seq
  ) r
) t;

-- name: prove_events :many
-- By partner of a drop, what there is to tell and what its events tell (I7): its vouchers among those
-- told; of how many its events tell; how many events there are, how many different `sequence` they have,
-- the lowest, the highest and the last one given; whether the oldest events were dropped.
-- Params: $1 int drop_no
WITH owned AS (
  SELECT v.partner_no, count(*)::int AS voucher_count
  FROM drop_tellings t
  JOIN vouchers v ON v.drop_no = t.drop_no AND v.seq <= t.told_seq
  WHERE t.drop_no = $1
  GROUP BY v.partner_no
),
heard AS (
  SELECT
    partner_no, sum(voucher_count)::int AS voucher_count, count(*)::int AS event_count,
    count(DISTINCT sequence)::int AS sequence_count, min(sequence) AS first_sequence, max(sequence) AS last_sequence
  FROM events
  WHERE drop_no = $1
  GROUP BY partner_no
),
given AS (
  SELECT partner_no, last_sequence FROM event_sequences WHERE drop_no = $1
)
SELECT
  partner_no, coalesce(o.voucher_count, 0) AS owned_count, coalesce(h.voucher_count, 0) AS told_count,
  coalesce(h.event_count, 0) AS event_count, coalesce(h.sequence_count, 0) AS sequence_count,
  coalesce(h.first_sequence, 0) AS first_sequence, coalesce(h.last_sequence, 0) AS last_sequence,
  coalesce(g.last_sequence, 0) AS given_sequence,
  (
    SELECT coalesce(min(split_part(c.relname, '_', 2)::bigint), 0) > 0
    FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'events'::regclass
  ) AS events_dropped
FROM owned o
FULL JOIN heard h USING (partner_no)
FULL JOIN given g USING (partner_no)
ORDER BY partner_no;

-- name: read_blessing :one
-- The server that was checked last.
-- Params: $1 smallint shard
SELECT run_id, replication_id FROM blessings WHERE shard = $1;

-- name: begin_check :value
-- Fence off every server but the one that is checked now. Waits for commits under way: each holds the row.
-- Params: as bless_next
UPDATE blessings SET checking_run_id = $2, checking_replication_id = $3
WHERE shard = $1 AND run_id = $4 AND replication_id = $5
RETURNING shard;

-- name: end_check :execute
-- The check came to nothing, because the blessed server is back.
-- Params: $1 smallint shard
UPDATE blessings SET checking_run_id = NULL, checking_replication_id = NULL
WHERE shard = $1 AND checking_run_id IS NOT NULL;

-- name: bless_first :value
-- Bless the first server of a shard; nothing where another reconciler was faster.
-- Params: $1 smallint shard, $2 text run_id, $3 text replication_id
INSERT INTO blessings (shard, run_id, replication_id) VALUES ($1, $2, $3)
ON CONFLICT (shard) DO NOTHING
RETURNING shard;

-- name: bless_next :value
-- Bless another server, if the one blessed before is still the one that the check began with.
-- Params: $1 smallint shard, $2 text run_id, $3 text replication_id, $4 text previous run_id,
-- $5 text previous replication_id
UPDATE blessings
SET run_id = $2, replication_id = $3, blessed_at = now(), checking_run_id = NULL, checking_replication_id = NULL
WHERE shard = $1 AND run_id = $4 AND replication_id = $5
RETURNING shard;

-- name: try_lead :value
-- Take the lock by which one reconciler of a shard acts at a time. It ends with the session.
-- Params: $1 int key, $2 int shard
SELECT pg_try_advisory_lock($1, $2);

-- name: beat :value
-- Let the session of the lock live on.
SELECT 1;
