/*
revoking: a voucher is taken back and its unit returns to stock exactly once. The service does not do this
yet; this is a protocol that holds. Postgres marks the row, which stays, and writes a return with it. A worker
hands the return to Redis, where one script counts it if the person's committed note is still there, and
removes the note: the note is the token. A grant whose voucher is revoked by the time it is settled gives its
unit back at once. Two workers may hand over one return; a rebuild loads no revoked voucher.
*/
#define PERSONS 2
#define REVOKING
byte revoked;                /* the set of persons whose voucher was revoked */
byte returns;                /* the set of persons whose return is in the outbox */
#define STANDING (rows & ~revoked)
#define RETURNS_DUE(s) COUNT(revoked & returns & redis[s].holders[ledger_epoch] & ~PENDING_NOTES(s))
/* Persons with a grant on the stream under the published epoch: their note is a pending one. */
#define ON_STREAM(s, g) (HAS(redis[s].stream, g) && epoch_of[g] == redis[s].published -> 1 << person_of[g] : 0)
#define PENDING_NOTES(s) (ON_STREAM(s, 0) | ON_STREAM(s, 1) | ON_STREAM(s, 2) | ON_STREAM(s, 3))
/* Between a revocation and its return the gate may say sold out for good; nobody can know better. */
#define SOLD_OUT_AT(s) (redis[s].quantity - COUNT(revoked))
#define EXACT(s) ((redis[s].holders[mine] & ~revoked) == STANDING && COUNT(redis[s].holders[mine]) == issued_read)
#include "protocol.pml"
#include "rebuilding.inc.pml"
#ifndef WHIMS
#define WHIMS 1
#endif
#ifndef CRASHES
#define CRASHES 0
#endif

byte whims_left;             /* rebuilds that nothing asks for */
byte return_epoch;           /* only without the token: the epoch at the revocation */

proctype person(byte p) {
  byte tries;
  do
  :: tries < 2 -> atomic { tries++; grab(0, p) }
  :: break
  od
}

proctype revoker() {
  end:
#ifdef WITHOUT_LEDGER_FIRST
  atomic { CURRENT(0) && HAS(redis[0].holders[ledger_epoch], 0) && HAS(rows, 0) && !HAS(PENDING_NOTES(0), 0) ->
    redis[0].available++; redis[0].issued--; redis[0].holders[ledger_epoch] = LESS(redis[0].holders[ledger_epoch], 0) };
#endif
  atomic {
    HAS(rows, 0) && !HAS(revoked, 0) ->
    revoked = WITH(revoked, 0); returns = WITH(returns, 0); ledger_issued--; return_epoch = ledger_epoch
  }
}

proctype returner() {
  end: do
  :: HAS(returns, 0);
    atomic {
      if
      :: !CURRENT(0) -> skip                                     /* later */
#ifdef WITHOUT_NOTE_AS_TOKEN
      :: CURRENT(0) && redis[0].published == return_epoch ->
        redis[0].available++; redis[0].issued--;
        redis[0].holders[ledger_epoch] = LESS(redis[0].holders[ledger_epoch], 0)
      :: CURRENT(0) && redis[0].published != return_epoch -> skip
#else
      :: CURRENT(0) && !HAS(redis[0].holders[ledger_epoch], 0) -> skip /* counted before, or never loaded */
#ifdef WITHOUT_COMMITTED_NOTE
      :: CURRENT(0) && HAS(redis[0].holders[ledger_epoch], 0) ->
#else
      :: CURRENT(0) && HAS(redis[0].holders[ledger_epoch], 0) && HAS(PENDING_NOTES(0), 0) -> skip /* later */
      :: CURRENT(0) && HAS(redis[0].holders[ledger_epoch], 0) && !HAS(PENDING_NOTES(0), 0) ->
#endif
        redis[0].available++; redis[0].issued--;
        redis[0].holders[ledger_epoch] = LESS(redis[0].holders[ledger_epoch], 0)
#endif
      fi;
      assert(SUM(0) == redis[0].quantity || !CURRENT(0));
      assert(redis[0].issued < 100 && redis[0].pending < 100);   /* neither went below zero */
      CHECK(0)
    };
    if
    :: atomic { CURRENT(0) && !HAS(redis[0].holders[ledger_epoch], 0) -> returns = LESS(returns, 0) }
    :: else                                                      /* handed over again, also after a death */
    fi
  od
}

proctype reconciler() {
  REBUILDER;
  end: do
  :: atomic {
      (whims_left > 0 || !AGREES(0)) && RESTS(0) && returns == 0 && MAY_BEGIN ->
      if
      :: AGREES(0) -> whims_left--
      :: else
      fi;
      begin_rebuild(0)
    };
    rebuild(0)
  :: atomic { whims_left > 0 && returns != 0 && MAY_BEGIN -> whims_left--; begin_rebuild(0) }; rebuild(0)
  od
}

proctype rest() {
  timeout;
  assert(returns == 0 && AGREES(0) && redis[0].pending == 0);
  assert(redis[0].available + ledger_issued == ledger_quantity);  /* the unit came back once */
  assert((told & ~rows) == 0)
}

init {
  d_step {
    crashes_left = CRASHES; whims_left = WHIMS;
    redis[0].identity = 1; redis[0].published = 1; redis[0].loaded = 1;
    redis[0].available = QUANTITY; redis[0].quantity = QUANTITY; redis[0].version = 1
  }
  atomic {
    run person(0); run person(1); run drainer(0); run revoker(); run returner(); run returner();
    run reconciler(); run rest()
  }
}
