/* rebuilding.inc: what a reconciler does, step by step (reconcile/rebuild.py, gate/loading.py). */

byte rebuilders;             /* how many are in the middle of a rebuild */
byte overlaps_left;          /* how often another one may begin meanwhile; in the service a lock keeps them apart */
#ifndef AFTER_FENCE
#define AFTER_FENCE skip
#endif
#define MAY_BEGIN (rebuilders == 0 || overlaps_left > 0)

#define ABS(x) ((x) < 0 -> -(x) : (x))
#define REBUILDER \
  byte seen, mine, issued_read, quantity_read, version_read, rows_read, server, previous; short seen_published
#define FORGET \
  seen = 0; mine = 0; issued_read = 0; quantity_read = 0; version_read = 0; rows_read = 0; seen_published = 0
#define ABANDON :: atomic { crashes_left > 0 -> crashes_left--; mine = 0 } /* it dies here; another one begins anew */

/* To be run within the step that found the drop wanting. */
inline begin_rebuild(s) {
  if
  :: rebuilders > 0 -> overlaps_left--
  :: else
  fi;
  rebuilders++;
  seen = ledger_epoch; seen_published = redis[s].published
#ifdef WITHOUT_RAISE_BEFORE_READING
  ; issued_read = ledger_issued; rows_read = STANDING; quantity_read = ledger_quantity; version_read = ledger_version
#endif
}

inline rebuild(s) {
  d_step {                                             /* raise_epoch: a compare-and-set in Postgres */
    row_lock == 0;
    if
#if !defined(WITHOUT_RAISE_COMPARE_AND_SET) && !defined(WITHOUT_RAISE_IN_ONE_STEP)
    :: ledger_epoch != seen -> mine = 0
#endif
    :: else ->
#ifdef WITHOUT_RAISE_IN_ONE_STEP
      mine = (seen > ABS(seen_published) -> seen : ABS(seen_published)) + 1;
#else
      mine = (ledger_epoch > ABS(seen_published) -> ledger_epoch : ABS(seen_published)) + 1;
#endif
      assert(mine < EPOCHS);
      ledger_epoch = mine
    fi
  }
  if ABANDON :: skip fi;
  d_step {                                             /* read_ledger */
    if
    :: ledger_epoch != mine -> mine = 0
    :: else ->
#ifndef WITHOUT_RAISE_BEFORE_READING
      issued_read = ledger_issued; quantity_read = ledger_quantity; version_read = ledger_version
#endif
    fi
  }
#ifndef WITHOUT_FENCE
  d_step {                                             /* fence_drop.lua */
    if
    :: mine > 0 && redis[s].published > 0 && redis[s].published < mine -> redis[s].published = -redis[s].published
    :: else
    fi
  }
#endif
  AFTER_FENCE;
  if ABANDON :: skip fi;
  d_step {                                             /* unload_epoch.lua: what an earlier try left */
    if
    :: mine > 0 && redis[s].published == mine -> mine = 0
    :: mine > 0 && redis[s].published != mine -> redis[s].holders[mine] = 0
    :: else
    fi;
#ifndef WITHOUT_RAISE_BEFORE_READING
    rows_read = STANDING                                   /* the cursor: later than what was read before */
#endif
  }
  d_step {
    if
    :: mine > 0 -> redis[s].holders[mine] = redis[s].holders[mine] | rows_read
    :: else
    fi
  }
  if ABANDON :: skip fi;
  publish(s);
  if
  :: mine > 0 ->
    d_step { quantity_read = ledger_quantity; version_read = ledger_version }
    define(s, mine, version_read, quantity_read, true);
    if ABANDON :: skip fi;
    unload_older(s)
  :: else
  fi;
  atomic { rebuilders--; FORGET }
}

#ifndef EXACT
#define EXACT(s) (issued_read == ledger_issued && redis[s].holders[mine] == (STANDING))
#endif

/* publish_epoch.lua: a compare-and-set in Redis. */
inline publish(s) {
  d_step {
    if
    :: mine == 0 -> skip
#ifndef WITHOUT_PUBLISH_COMPARE_AND_SET
    :: mine > 0 && redis[s].published >= mine -> mine = 0                         /* REFUSED */
    :: mine > 0 && redis[s].published <= -mine -> mine = 0
#endif
#ifndef WITHOUT_HOLDERS_COUNTED
    :: mine > 0 && ABS(redis[s].published) < mine && COUNT(redis[s].holders[mine]) != issued_read -> mine = 0
#endif
#ifndef WITHOUT_VERSION_TOLD
    :: mine > 0 && ABS(redis[s].published) < mine && redis[s].version_told > version_read -> mine = 0 /* OUTDATED */
#endif
    :: else ->
      redis[s].published = mine; redis[s].loaded = 1; redis[s].version_told = 0;
      redis[s].available = quantity_read - issued_read; redis[s].pending = 0;
      redis[s].issued = issued_read; redis[s].quantity = quantity_read; redis[s].version = version_read;
      assert(EXACT(s));                                                           /* whoever was slow */
      lost = 0
    fi
  }
}

/* unload_epoch.lua, for every older epoch. */
inline unload_older(s) {
  d_step {
    byte old = 1;
    do
    :: old < mine ->
      if
#ifndef WITHOUT_UNLOAD_LOOKS_FIRST
      :: redis[s].published == old -> skip                                        /* OPEN */
#endif
      :: else ->
        redis[s].holders[old] = 0;
        if
        :: redis[s].published == old -> redis[s].loaded = 0
        :: else
        fi
      fi;
      old++
    :: old >= mine -> break
    od;
    old = 0;
    assert(redis[s].published <= 0 || redis[s].loaded)                            /* what is open stays */
  }
}
