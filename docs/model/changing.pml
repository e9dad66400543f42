/*
changing: operators restock and lower a drop while persons grab, drainers commit and a reconciler rebuilds for
no reason. An operator's process may die anywhere; a lower quantity is taken from the gate inside the
transaction, which may then fail, so that Redis is ahead until it is rebuilt. No server is lost.
*/
#define PERSONS 2
#include "protocol.pml"
#include "rebuilding.inc.pml"
#ifndef TRIES
#define TRIES 1
#endif

short restocked;             /* what operators were told: units added less units taken */
byte whims_left;             /* rebuilds that nothing asks for */
#ifndef WHIMS
#define WHIMS 1
#endif
#ifndef CRASHES
#define CRASHES 0
#endif

proctype person(byte p) {
  byte tries;
  do
  :: tries < TRIES -> atomic { tries++; grab(0, p) }
  :: break
  od
}

#ifdef WITHOUT_ROW_LOCK
#define LOCK skip
#define UNLOCK skip
#else
#define LOCK atomic { row_lock == 0 -> row_lock = 1 }
#define UNLOCK row_lock = 0
#endif

/* operations.restock: what widens a promise is committed first, then told to the gate. */
proctype restocker() {
  byte epoch, version, quantity;
  LOCK;
  d_step { epoch = ledger_epoch; version = ledger_version + 1; quantity = ledger_quantity + 1 }
#ifdef WITHOUT_RESTOCK_COMMITTED_FIRST
  define(0, epoch, version, quantity, false);
#endif
  atomic {
    if
    :: crashes_left > 0 -> crashes_left--; UNLOCK; goto gone     /* the transaction is undone */
    :: skip
    fi;
    ledger_version = version; ledger_quantity = quantity; restocked++; UNLOCK
  }
  if
  :: atomic { crashes_left > 0 -> crashes_left--; goto gone }    /* the gate is never told */
  :: skip
  fi;
  define(0, epoch, version, quantity, true);
  gone: atomic { epoch = 0; version = 0; quantity = 0 }
}

/* operations.define_drop with a lower quantity: taken from the gate first, then committed. */
proctype lowerer() {
  byte epoch, version, quantity; bit taken;
  LOCK;
  atomic {
    epoch = ledger_epoch; version = ledger_version + 1;
    if
    :: ledger_quantity > 0 && ledger_quantity > ledger_issued -> quantity = ledger_quantity - 1
    :: else -> UNLOCK; goto gone                                  /* Conflict: all of it is issued */
    fi
  }
#ifndef WITHOUT_TAKING_FIRST
  atomic {
    define(0, epoch, version, quantity, false);
    if
    :: CURRENT(0) && redis[0].version == version && redis[0].quantity == quantity -> taken = 1
    :: else -> UNLOCK; goto gone                                  /* Conflict, or the gate is rebuilding */
    fi
  }
#endif
  atomic {
    if
    :: crashes_left > 0 -> crashes_left--; UNLOCK; goto gone      /* taken, but the commit fails */
    :: skip
    fi;
    ledger_version = version; ledger_quantity = quantity; restocked--; UNLOCK
  }
  define(0, epoch, version, quantity, true);
  gone: atomic { epoch = 0; version = 0; quantity = 0; taken = 0 }
}

proctype reconciler() {
  REBUILDER;
  end: do
  :: atomic { BEHIND(0) && row_lock == 0 -> define(0, ledger_epoch, ledger_version, ledger_quantity, true) };
    if
    :: atomic { BEHIND(0) && redis[0].pending == 0 && MAY_BEGIN -> begin_rebuild(0) }; rebuild(0) /* CONFLICT */
    :: else
    fi
  :: atomic {
      (whims_left > 0 || !AGREES(0)) && !BEHIND(0) && RESTS(0) && row_lock == 0 && MAY_BEGIN ->
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
  assert(ledger_quantity == QUANTITY + restocked);                /* no operator's change is lost */
  assert((told & ~rows) == 0)
}

init {
  d_step {
    crashes_left = CRASHES; whims_left = WHIMS;
    redis[0].identity = 1; redis[0].published = 1; redis[0].loaded = 1;
    redis[0].available = QUANTITY; redis[0].quantity = QUANTITY; redis[0].version = 1
  }
  atomic {
    run person(0); run person(1); run drainer(0); run restocker();
#ifdef LOWERING
    run lowerer();
#else
    run restocker();
#endif
    run reconciler(); run rest()
  }
}
