-- 0004 Which server may its grants be committed from. Before a deploy: older versions do not write the
-- columns, and their drainers do not read them; until the last of these is gone the fence has a gap.
SET LOCAL lock_timeout = '3s';

-- The server that is being checked, from before the first look at it until it is blessed. Grants are
-- committed only if they were read from it, or from the blessed one while none is checked (decision 0019).
ALTER TABLE blessings
  ADD COLUMN checking_run_id         text,
  ADD COLUMN checking_replication_id text,
  ADD CONSTRAINT blessings_checking_is_whole CHECK (
    (checking_run_id IS NULL) = (checking_replication_id IS NULL)
  );
