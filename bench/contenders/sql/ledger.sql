-- Tables of the three contenders that write to Postgres: fewer indexes and columns than ours has.
DROP TABLE IF EXISTS stock, tickets, vouchers, outbox;

-- One hot row per drop (postgres-update). fillfactor keeps its updates on the page.
CREATE TABLE stock (
  drop_id   text    COLLATE "C" PRIMARY KEY,
  quantity  integer NOT NULL,
  issued    integer NOT NULL DEFAULT 0 CHECK (issued BETWEEN 0 AND quantity)
) WITH (fillfactor = 10);

-- One row per unit (postgres-tickets); taking one deletes it.
CREATE TABLE tickets (
  seq      integer PRIMARY KEY,
  drop_id  text    COLLATE "C" NOT NULL
);

CREATE TABLE vouchers (
  drop_id         text        COLLATE "C" NOT NULL,
  seq             serial      NOT NULL, -- a number of its own where the service gives none
  person_token    text        COLLATE "C" NOT NULL,
  out_request_no  text        COLLATE "C" NOT NULL,
  channel         text        COLLATE "C",
  region          text        COLLATE "C",
  code            text        COLLATE "C" NOT NULL,
  issued_at       timestamptz NOT NULL,
  PRIMARY KEY (drop_id, seq),
  CONSTRAINT one_per_person UNIQUE (drop_id, person_token)
);

CREATE TABLE outbox (
  event_no     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  type         text        NOT NULL,
  drop_id      text        COLLATE "C" NOT NULL,
  seq          integer     NOT NULL,
  occurred_at  timestamptz NOT NULL DEFAULT now()
);
