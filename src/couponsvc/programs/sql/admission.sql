-- Partners, and the credentials of everybody who may call.

-- name: insert_partner :value
-- Admit a partner; no row where the identifier is taken.
-- Params: $1 text partner_id, $2 text name
INSERT INTO partners (partner_id, name) VALUES ($1, $2)
ON CONFLICT (partner_id) DO NOTHING
RETURNING partner_no;

-- name: find_partner :value
-- A partner's number.
-- Params: $1 text partner_id
SELECT partner_no FROM partners WHERE partner_id = $1;

-- name: list_partners :many
-- All partners with how many live keys each has, and what each may send (null: not limited).
SELECT p.partner_id, p.name, p.created_at, p.grabs_per_second, p.grabs_burst,
       count(c.credential_no) FILTER (
         WHERE c.revoked_at IS NULL AND (c.expires_at IS NULL OR c.expires_at > now())
       ) AS live_key_count
FROM partners p LEFT JOIN credentials c USING (partner_no)
GROUP BY p.partner_no
ORDER BY p.partner_id;

-- name: limit_partner :value
-- Set what a partner may send, or that it is not limited; no row where there is no such partner.
-- Params: $1 text partner_id, $2 int grabs_per_second (null: not limited), $3 int grabs_burst
UPDATE partners SET grabs_per_second = $2, grabs_burst = $3 WHERE partner_id = $1
RETURNING partner_no;

-- name: insert_credential :value
-- Keep a credential: of its secret only what its kind needs.
-- Params: $1 text key_id, $2 text kind, $3 text holder, $4 int partner_no, $5 text[] scopes,
-- $6 bytea sealed_secret, $7 bytea public_key, $8 bytea token_hash, $9 text label,
-- $10 timestamptz expires_at
INSERT INTO credentials (key_id, kind, holder, partner_no, scopes, sealed_secret, public_key,
                         token_hash, label, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
RETURNING created_at;

-- name: list_credentials :many
-- All credentials, or a partner's, without anything secret.
-- Params: $1 text partner_id (null: everybody's)
SELECT c.key_id, c.kind, c.holder, p.partner_id, c.scopes, c.label, c.created_at, c.expires_at,
       c.revoked_at,
       c.revoked_at IS NULL AND (c.expires_at IS NULL OR c.expires_at > now()) AS live
FROM credentials c LEFT JOIN partners p USING (partner_no)
WHERE $1::text IS NULL OR p.partner_id = $1
ORDER BY c.credential_no;

-- name: lock_credential :one
-- One credential, locked until the transaction ends.
-- Params: $1 text key_id
SELECT c.kind, c.holder, c.partner_no, p.partner_id, c.scopes, c.label, c.revoked_at,
       c.revoked_at IS NULL AND (c.expires_at IS NULL OR c.expires_at > now()) AS live
FROM credentials c LEFT JOIN partners p USING (partner_no)
WHERE c.key_id = $1
FOR UPDATE OF c;

-- name: expire_credential :value
-- Let a credential end after a grace period, never later than it would anyway.
-- Params: $1 text key_id, $2 interval grace
UPDATE credentials SET expires_at = least(expires_at, now() + $2)
WHERE key_id = $1
RETURNING expires_at;

-- name: revoke_credential :execute
-- End a credential now.
-- Params: $1 text key_id
UPDATE credentials SET revoked_at = now() WHERE key_id = $1 AND revoked_at IS NULL;

-- name: read_live_credentials :many
-- Everything that may authenticate, for the table in memory. Credentials that expired within
-- a day are included, so that their holders are told so; the reader checks expires_at.
SELECT c.key_id, c.kind, c.holder, c.partner_no, p.partner_id, c.scopes, c.sealed_secret,
       c.public_key, c.token_hash, c.expires_at, p.grabs_per_second, p.grabs_burst
FROM credentials c LEFT JOIN partners p USING (partner_no)
WHERE c.revoked_at IS NULL AND (c.expires_at IS NULL OR c.expires_at > now() - interval '1 day');

-- name: lock_development_credentials :execute
-- One at a time may make the development credentials; released at the end of the transaction.
SELECT pg_advisory_xact_lock(hashtextextended('development credentials', 0));

-- name: find_labelled_credential :value
-- Whether a credential with this label was ever made.
-- Params: $1 text label
SELECT EXISTS (SELECT FROM credentials WHERE label = $1);

-- name: record_operation :execute
-- Write down who changed what.
-- Params: $1 text actor, $2 text action, $3 text subject, $4 jsonb detail
INSERT INTO operations (actor, action, subject, detail) VALUES ($1, $2, $3, $4::jsonb);
