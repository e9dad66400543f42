-- name: load_drops :many
-- Definitions of drops, by name.
-- Params: $1 text[] drop_id
SELECT
  d.drop_no, d.drop_id, p.program_id, d.template_id, p.region, d.shard, d.epoch, d.version,
  d.status, d.quantity, d.per_person_limit,
  (extract(epoch FROM d.opens_at) * 1000)::bigint AS opens_ms,
  (extract(epoch FROM d.closes_at) * 1000)::bigint AS closes_ms,
  d.face_value_fen, d.min_spend_fen, d.valid_for_ms,
  ARRAY(SELECT dp.partner_no FROM drop_partners dp WHERE dp.drop_no = d.drop_no) AS partners
FROM drops d
JOIN programs p USING (program_no)
WHERE d.drop_id = ANY ($1::text[])
ORDER BY d.drop_no;

-- name: mark_drops :one
-- Every drop, as four lists in the same order: whatever changes of a definition moves one of them.
-- (A drop changes with its version, its partners included; only the region is its program's.)
SELECT
  coalesce(array_agg(d.drop_id), '{}') AS drop_ids,
  coalesce(array_agg(d.epoch), '{}') AS epochs,
  coalesce(array_agg(d.version), '{}') AS versions,
  coalesce(array_agg(p.region), '{}') AS regions
FROM drops d
JOIN programs p USING (program_no);
