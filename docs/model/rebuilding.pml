/*
rebuilding: two reconcilers rebuild the same drop at the same time, for no reason at all, while persons grab
and drainers commit. Either may stop anywhere for any time, or die. No server is lost, so that every grant
either becomes a voucher or is refused as STALE and asked for again; and what is published is exact.
*/
#define PERSONS 2
#include "protocol.pml"
#include "rebuilding.inc.pml"
#ifndef TRIES
#define TRIES 2
#endif
#ifndef WHIMS
#define WHIMS 1
#endif
#ifndef CRASHES
#define CRASHES 1
#endif

byte whims_left;             /* rebuilds that nothing asks for */

proctype person(byte p) {
  byte tries;
  do
  :: tries < TRIES -> atomic { tries++; grab(0, p) }
  :: break
  od
}

proctype reconciler() {
  REBUILDER;
  end: do
#ifdef OPENING
  :: redis[0].published == 0 && ledger_issued == 0 && ledger_epoch == 1 ->  /* open_new_drop: nothing is raised */
    d_step { mine = 1; quantity_read = ledger_quantity; version_read = ledger_version };
    d_step {
      if
#ifndef WITHOUT_UNLOAD_LOOKS_FIRST
      :: redis[0].published == mine -> mine = 0
#endif
      :: else ->
        redis[0].holders[mine] = 0;
        if
        :: redis[0].published == mine -> redis[0].loaded = 0
        :: else
        fi
      fi;
      assert(redis[0].published <= 0 || redis[0].loaded)
    };
    publish(0);
    atomic { FORGET }
#endif
  :: atomic {
      (whims_left > 0 || !AGREES(0)) && RESTS(0) && MAY_BEGIN ->
      if
      :: AGREES(0) -> whims_left--
      :: else
      fi;
      begin_rebuild(0)
    };
    rebuild(0)
  od
}

proctype rest() {
  timeout;
  assert(AGREES(0) && redis[0].pending == 0);
  assert(redis[0].available + ledger_issued == ledger_quantity);
  assert((told & ~rows) == 0)
}

init {
  d_step {
    crashes_left = CRASHES; whims_left = WHIMS; overlaps_left = 1;
    redis[0].identity = 1;
#ifndef OPENING
    redis[0].published = 1; redis[0].loaded = 1;
    redis[0].available = QUANTITY; redis[0].quantity = QUANTITY; redis[0].version = 1
#endif
  }
  atomic {
    run person(0); run person(1); run drainer(0); run reconciler(); run reconciler(); run rest()
  }
}
