-- 0003 How many grabs a partner may send. Before a deploy: older versions do not read the columns, and
-- limit nobody.
SET LOCAL lock_timeout = '3s';

-- Both or neither; the gate keeps how far a rate is used, Postgres only what was agreed.
ALTER TABLE partners
  ADD COLUMN grabs_per_second integer,
  ADD COLUMN grabs_burst      integer,
  ADD CONSTRAINT partners_rate_in_bounds CHECK (
    grabs_per_second IS NULL AND grabs_burst IS NULL
    OR grabs_per_second IS NOT NULL AND grabs_burst IS NOT NULL
       AND grabs_per_second BETWEEN 1 AND 1000000 AND grabs_burst BETWEEN 1 AND 1000000
  );
