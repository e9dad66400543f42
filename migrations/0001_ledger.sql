-- 0001 The ledger: partners, programs, drops, vouchers, outbox. Before a deploy; empty database.
-- Postgres is the authority: its constraints make oversell and duplicates impossible even if
-- Redis lies. Text that is compared for identity only is collated "C" (faster, never locale-bound).
SET LOCAL lock_timeout = '3s';

CREATE TABLE partners (
  partner_no  integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  partner_id  text        COLLATE "C" NOT NULL UNIQUE CHECK (partner_id ~ '^[a-z0-9][a-z0-9-]{1,62}$'),
  name        text        NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now()
);

-- One row per way to prove who calls. `kind` fixes the algorithm; a request never chooses it.
CREATE TABLE credentials (
  credential_no  bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  key_id         text        COLLATE "C" NOT NULL UNIQUE,
  kind           text        NOT NULL CHECK (kind IN ('hmac-sha256', 'ed25519', 'bearer')),
  holder         text        NOT NULL CHECK (holder IN ('partner', 'operator', 'auditor')),
  partner_no     integer     REFERENCES partners,
  scopes         text[]      NOT NULL CHECK (scopes <@ ARRAY['grab', 'read', 'redeem', 'operate', 'audit']),
  sealed_secret  bytea,      -- hmac-sha256: the key, sealed with the master key
  public_key     bytea,      -- ed25519: 32 raw bytes
  token_hash     bytea       UNIQUE, -- bearer: keyed hash, the token itself is shown once
  label          text        NOT NULL DEFAULT '',
  created_at     timestamptz NOT NULL DEFAULT now(),
  expires_at     timestamptz,
  revoked_at     timestamptz,
  CHECK ((holder = 'partner') = (partner_no IS NOT NULL)),
  CHECK ((kind = 'hmac-sha256') = (sealed_secret IS NOT NULL)),
  CHECK ((kind = 'ed25519') = (public_key IS NOT NULL)),
  CHECK ((kind = 'bearer') = (token_hash IS NOT NULL))
);

CREATE TABLE programs (
  program_no       integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  program_id       text        COLLATE "C" NOT NULL UNIQUE CHECK (program_id ~ '^[a-z0-9][a-z0-9-]{1,62}$'),
  name             text        NOT NULL,
  region           text        NOT NULL DEFAULT '' CHECK (region ~ '^([0-9]{6})?$'),
  sealed_code_key  bytea       NOT NULL, -- permutes voucher numbers into till codes (ledger/codes.py)
  created_at       timestamptz NOT NULL DEFAULT now(),
  updated_at       timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE templates (
  program_no      integer     NOT NULL REFERENCES programs,
  template_id     text        COLLATE "C" NOT NULL CHECK (template_id ~ '^[a-z0-9][a-z0-9-]{1,62}$'),
  name            text        NOT NULL,
  face_value_fen  bigint      NOT NULL CHECK (face_value_fen > 0),
  min_spend_fen   bigint      NOT NULL CHECK (min_spend_fen >= 0),
  valid_for_ms    bigint      NOT NULL CHECK (valid_for_ms > 0),
  created_at      timestamptz NOT NULL DEFAULT now(),
  updated_at      timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (program_no, template_id)
);

-- `issued` is the hot counter: its row lock hands out gap-free numbers. fillfactor keeps its
-- updates on the page (HOT), and no index covers a column that changes per batch.
CREATE TABLE drops (
  drop_no           integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  drop_id           text        COLLATE "C" NOT NULL UNIQUE CHECK (drop_id ~ '^[a-z0-9][a-z0-9-]{1,62}$'),
  program_no        integer     NOT NULL,
  template_id       text        COLLATE "C" NOT NULL,
  shard             smallint    NOT NULL DEFAULT 0,
  quantity          integer     NOT NULL CHECK (quantity > 0),
  per_person_limit  smallint    NOT NULL CHECK (per_person_limit BETWEEN 1 AND 16),
  opens_at          timestamptz NOT NULL,
  closes_at         timestamptz NOT NULL,
  status            smallint    NOT NULL DEFAULT 0 CHECK (status IN (0, 1, 2)),
  -- terms of the template as they stood when the drop was last defined; frozen by the first grant
  face_value_fen    bigint      NOT NULL CHECK (face_value_fen > 0),
  min_spend_fen     bigint      NOT NULL CHECK (min_spend_fen >= 0),
  valid_for_ms      bigint      NOT NULL CHECK (valid_for_ms > 0),
  issued            integer     NOT NULL DEFAULT 0,
  epoch             integer     NOT NULL DEFAULT 1 CHECK (epoch > 0),
  version           bigint      NOT NULL DEFAULT 1 CHECK (version > 0),
  sold_out_at       timestamptz,
  created_at        timestamptz NOT NULL DEFAULT now(),
  updated_at        timestamptz NOT NULL DEFAULT now(),
  FOREIGN KEY (program_no, template_id) REFERENCES templates,
  CHECK (opens_at < closes_at),
  CONSTRAINT drops_issued_within_quantity CHECK (issued BETWEEN 0 AND quantity)
) WITH (fillfactor = 50);

CREATE TABLE drop_partners (
  drop_no     integer NOT NULL REFERENCES drops,
  partner_no  integer NOT NULL REFERENCES partners,
  PRIMARY KEY (drop_no, partner_no)
);
CREATE INDEX drop_partners_by_partner ON drop_partners (partner_no, drop_no);

-- What was issued. No foreign key to drops: every insert holds the drop's row lock and joins it,
-- and a key check per row would double the cost of the insert.
CREATE TABLE vouchers (
  drop_no         integer     NOT NULL,
  seq             integer     NOT NULL CHECK (seq > 0),
  partner_no      integer     NOT NULL,
  ordinal         smallint    NOT NULL CHECK (ordinal BETWEEN 1 AND 16),
  issued_at       timestamptz NOT NULL,
  person_token    text        COLLATE "C" NOT NULL,
  out_request_no  text        COLLATE "C" NOT NULL,
  code            text        COLLATE "C" NOT NULL,
  channel         text        COLLATE "C" NOT NULL DEFAULT '',
  region          text        COLLATE "C" NOT NULL DEFAULT '',
  CONSTRAINT vouchers_pkey PRIMARY KEY (drop_no, seq),
  CONSTRAINT vouchers_one_per_request UNIQUE (partner_no, out_request_no),
  CONSTRAINT vouchers_person_limit UNIQUE (drop_no, partner_no, person_token, ordinal)
);

-- What partners must hear of. One row tells of a whole committed batch: the vouchers
-- first_seq..last_seq of a drop, so that rows of a drop tile 1..issued (invariant I7).
CREATE TABLE outbox (
  event_no     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  type         text        NOT NULL CHECK (type ~ '^[a-z]+\.[a-z_]+$'),
  drop_no      integer     NOT NULL,
  first_seq    integer,
  last_seq     integer,
  data         jsonb       NOT NULL DEFAULT '{}',
  occurred_at  timestamptz NOT NULL DEFAULT now(),
  CHECK ((type = 'voucher.issued') = (first_seq IS NOT NULL)),
  CHECK ((first_seq IS NULL) = (last_seq IS NULL)),
  CHECK (first_seq BETWEEN 1 AND last_seq)
);
CREATE UNIQUE INDEX outbox_issued_once ON outbox (drop_no, first_seq) WHERE first_seq IS NOT NULL;

-- Which Redis was checked last, per shard. A connection to any other one must not decide.
CREATE TABLE blessings (
  shard           smallint    PRIMARY KEY,
  run_id          text        NOT NULL,
  replication_id  text        NOT NULL,
  blessed_at      timestamptz NOT NULL DEFAULT now()
);

-- Stream entries that no version could read: kept whole, never guessed at.
CREATE TABLE dead_letters (
  entry_id     text        NOT NULL,
  shard        smallint    NOT NULL,
  payload      bytea       NOT NULL,
  reason       text        NOT NULL,
  received_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (shard, entry_id)
);

-- Who changed what: every definition, pause, resume, close and restock.
CREATE TABLE operations (
  operation_no  bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  occurred_at   timestamptz NOT NULL DEFAULT now(),
  actor         text        NOT NULL, -- key_id of the credential, or 'cli'
  action        text        NOT NULL,
  subject       text        NOT NULL,
  detail        jsonb       NOT NULL DEFAULT '{}'
);
