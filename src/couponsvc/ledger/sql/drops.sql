-- name: load_drops :many
-- Definitions of drops, by name, or of all drops of a shard.
-- Params: $1 text[] drop_id or null for all
SELECT
  d.drop_no, d.drop_id, p.program_id, d.template_id, p.region, d.shard, d.epoch, d.version,
  d.status, d.quantity, d.per_person_limit,
  (extract(epoch FROM d.opens_at) * 1000)::bigint AS opens_ms,
  (extract(epoch FROM d.closes_at) * 1000)::bigint AS closes_ms,
  d.face_value_fen, d.min_spend_fen, d.valid_for_ms,
  ARRAY(SELECT dp.partner_no FROM drop_partners dp WHERE dp.drop_no = d.drop_no) AS partners
FROM drops d
JOIN programs p USING (program_no)
WHERE $1::text[] IS NULL OR d.drop_id = ANY ($1::text[])
ORDER BY d.drop_no;
