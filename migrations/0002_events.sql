-- 0002 Events for partners: numbered once, delivered at least once. Before a deploy; start the first
-- relay only when every reconciler runs a version that knows `drop_tellings` (an older one would take
-- outbox rows that the relay has moved on for missing ones).
-- The way of an event: a commit writes an outbox row; the relay takes it out again, and in the same
-- transaction numbers one event per partner that may know, and queues its deliveries.
SET LOCAL lock_timeout = '3s';

-- The outbox is what no relay has seen yet. A test event concerns a subscription and no drop.
ALTER TABLE outbox RENAME COLUMN event_no TO outbox_no;
ALTER TABLE outbox ALTER COLUMN drop_no DROP NOT NULL;
ALTER TABLE outbox ADD COLUMN subscription_no integer;
ALTER TABLE outbox ADD CONSTRAINT outbox_concerns_one CHECK ((drop_no IS NULL) <> (subscription_no IS NULL));
-- Rows come and go: what a relay has passed must not be walked over again by the next turn.
ALTER TABLE outbox SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- One row. Its lock hands out event numbers in the order of commits and without gaps, so that a
-- reader who has seen a number has seen every lower one.
CREATE TABLE event_counter (
  only_one       boolean PRIMARY KEY DEFAULT true CHECK (only_one),
  last_event_no  bigint  NOT NULL DEFAULT 0 CHECK (last_event_no >= 0)
) WITH (fillfactor = 50);
INSERT INTO event_counter DEFAULT VALUES;

-- How far partners were told of a drop: vouchers 1..told_seq have their event (invariant I7 goes on
-- with the outbox rows after told_seq); whether the opening and the end of its window were told.
CREATE TABLE drop_tellings (
  drop_no      integer PRIMARY KEY REFERENCES drops,
  told_seq     integer NOT NULL DEFAULT 0 CHECK (told_seq >= 0),
  opened_told  boolean NOT NULL DEFAULT false,
  ended_told   boolean NOT NULL DEFAULT false
) WITH (fillfactor = 50);

-- The last `sequence` that a partner was given in a drop: 1, 2, 3 … without gaps.
CREATE TABLE event_sequences (
  drop_no        integer NOT NULL REFERENCES drops,
  partner_no     integer NOT NULL REFERENCES partners,
  last_sequence  integer NOT NULL CHECK (last_sequence > 0),
  PRIMARY KEY (drop_no, partner_no)
) WITH (fillfactor = 50);

-- What each partner may know, in order. Rows are added at the end and never change. A `voucher.issued`
-- row tells of those vouchers first_seq..last_seq of the drop that are this partner's.
CREATE TABLE events (
  event_no       bigint      NOT NULL,
  partner_no     integer     NOT NULL,
  drop_no        integer,
  sequence       integer,
  type           text        NOT NULL,
  first_seq      integer,
  last_seq       integer,
  voucher_count  smallint    NOT NULL DEFAULT 0,
  data           text        NOT NULL DEFAULT '{}', -- JSON, as text: the same bytes each time
  occurred_at    timestamptz NOT NULL,
  PRIMARY KEY (event_no),
  CHECK ((drop_no IS NULL) = (sequence IS NULL)),
  CHECK ((first_seq IS NULL) = (last_seq IS NULL)),
  CHECK ((first_seq IS NULL) = (voucher_count = 0)),
  CHECK (first_seq BETWEEN 1 AND last_seq)
) PARTITION BY RANGE (event_no);
CREATE INDEX events_by_partner ON events (partner_no, event_no);
CREATE INDEX events_by_drop ON events (drop_no, event_no);
CREATE INDEX events_by_moment ON events (partner_no, occurred_at);

-- Where a partner wants its events sent.
CREATE TABLE subscriptions (
  subscription_no         integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  partner_no              integer     NOT NULL REFERENCES partners,
  url                     text        NOT NULL CHECK (length(url) BETWEEN 1 AND 2048),
  types                   text[]      NOT NULL CHECK (cardinality(types) > 0),
  drop_nos                integer[],  -- null: every drop of the partner, present and future
  sealed_secret           bytea       NOT NULL,
  previous_sealed_secret  bytea,      -- after a rotation both sign, until previous_until
  previous_until          timestamptz,
  created_at              timestamptz NOT NULL DEFAULT now(),
  disabled_at             timestamptz, -- the receiver answered 410
  deleted_at              timestamptz,
  failure_count           integer     NOT NULL DEFAULT 0, -- in a row; 0 again with the first success
  held_until              timestamptz, -- while an endpoint fails, one probe at a time and not before this
  CHECK ((previous_sealed_secret IS NULL) = (previous_until IS NULL))
) WITH (fillfactor = 50);
CREATE INDEX subscriptions_by_partner ON subscriptions (partner_no) WHERE deleted_at IS NULL;

-- What is still to be delivered: the queue. A delivered row is gone; attempts tell of it.
CREATE TABLE deliveries (
  subscription_no  integer     NOT NULL,
  event_no         bigint      NOT NULL,
  queued_at        timestamptz NOT NULL, -- when its ladder of attempts began
  due_at           timestamptz NOT NULL,
  attempt_count    smallint    NOT NULL DEFAULT 0,
  leased_by        integer,    -- number of the relay that is delivering it
  leased_until     timestamptz,
  parked_at        timestamptz, -- given up until somebody asks for it again
  parked_because   text,
  PRIMARY KEY (subscription_no, event_no),
  CHECK ((leased_by IS NULL) = (leased_until IS NULL)),
  CHECK ((parked_at IS NULL) = (parked_because IS NULL)),
  CHECK (parked_at IS NULL OR leased_by IS NULL)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
CREATE INDEX deliveries_due ON deliveries (subscription_no, due_at, event_no) WHERE parked_at IS NULL;
CREATE INDEX deliveries_leased ON deliveries (leased_by) WHERE leased_by IS NOT NULL;
CREATE SEQUENCE relay_numbers AS integer CYCLE; -- one per start of a relay; names its leases

-- Every attempt to deliver, with its outcome. Days are partitions, dropped when they are old.
CREATE TABLE delivery_attempts (
  subscription_no  integer     NOT NULL,
  event_no         bigint      NOT NULL,
  attempt_no       smallint    NOT NULL,
  attempted_at     timestamptz NOT NULL,
  took_ms          integer     NOT NULL,
  status           smallint,   -- of the HTTP answer; null: there was none
  outcome          text        NOT NULL CHECK (outcome IN ('delivered', 'failed', 'gone')),
  error            text        NOT NULL DEFAULT '' -- for people; never what a receiver sent
) PARTITION BY RANGE (attempted_at);
CREATE INDEX delivery_attempts_by_subscription ON delivery_attempts (subscription_no, attempted_at);
CREATE INDEX delivery_attempts_by_event ON delivery_attempts (subscription_no, event_no);

-- How far a broker was fed.
CREATE TABLE sinks (
  sink          text   COLLATE "C" PRIMARY KEY,
  last_event_no bigint NOT NULL DEFAULT 0,
  leased_by     integer,
  leased_until  timestamptz,
  CHECK ((leased_by IS NULL) = (leased_until IS NULL))
) WITH (fillfactor = 50);
