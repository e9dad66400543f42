-- Programs, templates and drops as operators define them.

-- name: insert_program :value
-- Create a program; nothing where its name is taken.
-- Params: $1 text program_id, $2 text name, $3 text region, $4 bytea sealed_code_key
INSERT INTO programs (program_id, name, region, sealed_code_key)
VALUES ($1, $2, $3, $4)
ON CONFLICT (program_id) DO NOTHING
RETURNING program_no;

-- name: lock_program :one
-- A program, kept from changing until this transaction ends.
-- Params: $1 text program_id
SELECT program_no, program_id, name, region
FROM programs
WHERE program_id = $1
FOR UPDATE;

-- name: share_program :value
-- Number of a program, kept from changing while a drop of it is defined.
-- Params: $1 text program_id
SELECT program_no FROM programs WHERE program_id = $1 FOR SHARE;

-- name: update_program :execute
-- Replace what a program says.
-- Params: $1 int program_no, $2 text name, $3 text region
UPDATE programs SET name = $2, region = $3, updated_at = now() WHERE program_no = $1;

-- name: find_program :one
-- A program, where the asker may see it.
-- Params: $1 text program_id, $2 int partner_no or null: only where this partner may see a drop of it
SELECT program_no, program_id, name, region, created_at, updated_at
FROM programs p
WHERE program_id = $1
  AND ($2::int IS NULL OR EXISTS (
    SELECT FROM drops d JOIN drop_partners dp USING (drop_no)
    WHERE d.program_no = p.program_no AND dp.partner_no = $2));

-- name: list_programs :many
-- Programs in the order of their names, one page.
-- Params: $1 text after (program_id), $2 int limit, $3 int partner_no or null
SELECT program_no, program_id, name, region, created_at, updated_at
FROM programs p
WHERE program_id > $1
  AND ($3::int IS NULL OR EXISTS (
    SELECT FROM drops d JOIN drop_partners dp USING (drop_no)
    WHERE d.program_no = p.program_no AND dp.partner_no = $3))
ORDER BY program_id
LIMIT $2;

-- name: open_drops_of_program :many
-- Numbers of the drops of a program that are not closed: who must hear of its change.
-- Params: $1 int program_no
SELECT drop_no, shard FROM drops WHERE program_no = $1 AND status <> 2 ORDER BY drop_no;

-- name: insert_template :value
-- Create a template; nothing where its name is taken in the program.
-- Params: $1 int program_no, $2 text template_id, $3 text name, $4 bigint face_value_fen,
--         $5 bigint min_spend_fen, $6 bigint valid_for_ms
INSERT INTO templates (program_no, template_id, name, face_value_fen, min_spend_fen, valid_for_ms)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (program_no, template_id) DO NOTHING
RETURNING program_no;

-- name: lock_template :one
-- A template, kept from changing until this transaction ends.
-- Params: $1 int program_no, $2 text template_id
SELECT template_id, name, face_value_fen, min_spend_fen, valid_for_ms
FROM templates
WHERE program_no = $1 AND template_id = $2
FOR UPDATE;

-- name: update_template :execute
-- Replace what a template says.
-- Params: $1 int program_no, $2 text template_id, $3 text name, $4 bigint face_value_fen,
--         $5 bigint min_spend_fen, $6 bigint valid_for_ms
UPDATE templates
SET name = $3, face_value_fen = $4, min_spend_fen = $5, valid_for_ms = $6, updated_at = now()
WHERE program_no = $1 AND template_id = $2;

-- name: share_template :one
-- Terms of a template, kept from changing while a drop of it is defined.
-- Params: $1 int program_no, $2 text template_id
SELECT face_value_fen, min_spend_fen, valid_for_ms
FROM templates
WHERE program_no = $1 AND template_id = $2
FOR SHARE;

-- name: find_template :one
-- A template as it stands.
-- Params: $1 text program_id, $2 text template_id
SELECT t.template_id, t.name, t.face_value_fen, t.min_spend_fen, t.valid_for_ms, t.created_at, t.updated_at
FROM templates t JOIN programs p USING (program_no)
WHERE p.program_id = $1 AND t.template_id = $2;

-- name: list_templates :many
-- The templates of a program in the order of their names.
-- Params: $1 int program_no
SELECT template_id, name, face_value_fen, min_spend_fen, valid_for_ms, created_at, updated_at
FROM templates
WHERE program_no = $1
ORDER BY template_id;

-- name: number_partners :many
-- Numbers of partners by their names; a name that is missing in the answer is unknown.
-- Params: $1 text[] partner_id
SELECT partner_id, partner_no FROM partners WHERE partner_id = ANY ($1);

-- name: insert_drop :value
-- Create a drop; nothing where its name is taken.
-- Params: $1 text drop_id, $2 int program_no, $3 text template_id, $4 smallint shard, $5 int quantity,
--         $6 smallint per_person_limit, $7 timestamptz opens_at, $8 timestamptz closes_at,
--         $9 bigint face_value_fen, $10 bigint min_spend_fen, $11 bigint valid_for_ms
INSERT INTO drops (drop_id, program_no, template_id, shard, quantity, per_person_limit, opens_at,
  closes_at, face_value_fen, min_spend_fen, valid_for_ms)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (drop_id) DO NOTHING
RETURNING drop_no;

-- name: lock_drop :value
-- Number of a drop, locked: no voucher is issued and no operator changes it until this ends.
-- Params: $1 text drop_id
SELECT drop_no FROM drops WHERE drop_id = $1 FOR UPDATE;

-- name: read_drop :one
-- A drop with its program and partners.
-- Params: $1 int drop_no
SELECT d.drop_no, d.drop_id, p.program_id, d.template_id, p.region, d.shard, d.epoch, d.version, d.status,
  d.quantity, d.per_person_limit, d.face_value_fen, d.min_spend_fen, d.valid_for_ms, d.issued,
  (extract(epoch FROM d.opens_at) * 1000)::bigint AS opens_ms,
  (extract(epoch FROM d.closes_at) * 1000)::bigint AS closes_ms,
  (extract(epoch FROM d.sold_out_at) * 1000)::bigint AS sold_out_ms,
  ARRAY(SELECT partner_no FROM drop_partners x JOIN partners USING (partner_no)
        WHERE x.drop_no = d.drop_no ORDER BY partner_id) AS partners,
  ARRAY(SELECT partner_id FROM drop_partners x JOIN partners USING (partner_no)
        WHERE x.drop_no = d.drop_no ORDER BY partner_id) AS partner_ids
FROM drops d JOIN programs p USING (program_no)
WHERE d.drop_no = $1;

-- name: find_drop_no :value
-- Number of a drop, where the asker may see it.
-- Params: $1 text drop_id, $2 int partner_no or null: only where this partner may see it
SELECT d.drop_no
FROM drops d
WHERE d.drop_id = $1
  AND ($2::int IS NULL OR EXISTS (
    SELECT FROM drop_partners dp WHERE dp.drop_no = d.drop_no AND dp.partner_no = $2));

-- name: list_drop_nos :many
-- Numbers of drops in the order of their names, one page.
-- Params: $1 text after (drop_id), $2 int limit, $3 int partner_no or null, $4 text program_id or null
SELECT d.drop_no
FROM drops d JOIN programs p USING (program_no)
WHERE d.drop_id > $1
  AND ($3::int IS NULL OR EXISTS (
    SELECT FROM drop_partners dp WHERE dp.drop_no = d.drop_no AND dp.partner_no = $3))
  AND ($4::text IS NULL OR p.program_id = $4)
ORDER BY d.drop_id
LIMIT $2;

-- name: read_drops :many
-- Several drops, in the order of their names (columns as read_drop).
-- Params: $1 int[] drop_no
SELECT d.drop_no, d.drop_id, p.program_id, d.template_id, p.region, d.shard, d.epoch, d.version, d.status,
  d.quantity, d.per_person_limit, d.face_value_fen, d.min_spend_fen, d.valid_for_ms, d.issued,
  (extract(epoch FROM d.opens_at) * 1000)::bigint AS opens_ms,
  (extract(epoch FROM d.closes_at) * 1000)::bigint AS closes_ms,
  (extract(epoch FROM d.sold_out_at) * 1000)::bigint AS sold_out_ms,
  ARRAY(SELECT partner_no FROM drop_partners x JOIN partners USING (partner_no)
        WHERE x.drop_no = d.drop_no ORDER BY partner_id) AS partners,
  ARRAY(SELECT partner_id FROM drop_partners x JOIN partners USING (partner_no)
        WHERE x.drop_no = d.drop_no ORDER BY partner_id) AS partner_ids
FROM drops d JOIN programs p USING (program_no)
WHERE d.drop_no = ANY ($1)
ORDER BY d.drop_id;

-- name: update_drop :execute
-- Replace a drop's definition. A raised quantity takes back that it was sold out; a quantity lowered
-- to what is issued sells it out. `bump_epoch` opens a new generation of its state in Redis.
-- Params: $1 int drop_no, $2 int program_no, $3 text template_id, $4 int quantity,
--         $5 smallint per_person_limit, $6 timestamptz opens_at, $7 timestamptz closes_at,
--         $8 bigint face_value_fen, $9 bigint min_spend_fen, $10 bigint valid_for_ms, $11 boolean bump_epoch
UPDATE drops
SET program_no = $2, template_id = $3, quantity = $4, per_person_limit = $5, opens_at = $6, closes_at = $7,
  face_value_fen = $8, min_spend_fen = $9, valid_for_ms = $10, version = version + 1,
  epoch = epoch + $11::boolean::int,
  sold_out_at = CASE WHEN issued = $4 THEN coalesce(sold_out_at, now()) END, updated_at = now()
WHERE drop_no = $1;

-- name: set_status :execute
-- Replace what an operator decided of a drop.
-- Params: $1 int drop_no, $2 smallint status
UPDATE drops SET status = $2, version = version + 1, updated_at = now() WHERE drop_no = $1;

-- name: set_quantity :execute
-- Replace the quantity of a drop.
-- Params: $1 int drop_no, $2 int quantity
UPDATE drops
SET quantity = $2, version = version + 1,
  sold_out_at = CASE WHEN issued = $2 THEN coalesce(sold_out_at, now()) END, updated_at = now()
WHERE drop_no = $1;

-- name: admit_partners :execute
-- Let partners see a drop and grab from it.
-- Params: $1 int drop_no, $2 int[] partner_no
INSERT INTO drop_partners (drop_no, partner_no)
SELECT $1, unnest($2::int[])
ON CONFLICT DO NOTHING;

-- name: expel_partners :execute
-- Take a drop away from partners.
-- Params: $1 int drop_no, $2 int[] partner_no
DELETE FROM drop_partners WHERE drop_no = $1 AND partner_no = ANY ($2);

-- name: holding_partners :many
-- Which of these partners hold vouchers of the drop.
-- Params: $1 int drop_no, $2 int[] partner_no
SELECT partner_id
FROM partners p
WHERE p.partner_no = ANY ($2)
  AND EXISTS (SELECT FROM vouchers v WHERE v.drop_no = $1 AND v.partner_no = p.partner_no)
ORDER BY partner_id;

-- name: record_operation :execute
-- Params: $1 text actor, $2 text action, $3 text subject, $4 jsonb detail
INSERT INTO operations (actor, action, subject, detail) VALUES ($1, $2, $3, $4::jsonb);

-- name: record_event :execute
-- Tell partners of a change of a drop, in the change's own transaction.
-- Params: $1 text type, $2 int drop_no, $3 jsonb data, $4 int partner_no or null: all of the drop
INSERT INTO outbox (type, drop_no, data, partner_no) VALUES ($1, $2, $3::jsonb, $4);
