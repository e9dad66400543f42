-- 0005 A change that concerns one partner of a drop alone: it was taken away from it. Before a deploy:
-- older versions do not write the column; an older relay leaves rows of the new types where they are.
SET LOCAL lock_timeout = '3s';

ALTER TABLE outbox
  ADD COLUMN partner_no integer,
  ADD CONSTRAINT outbox_addressed_of_a_drop CHECK (partner_no IS NULL OR (drop_no IS NOT NULL AND first_seq IS NULL));
