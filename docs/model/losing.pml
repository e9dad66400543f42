/*
losing: Redis is lost. A replica that stopped listening at any earlier moment is promoted, or the server
comes back empty, or somebody flushes it while it runs. Drainers may hold entries of the lost server in
their hands. The gate decides only on the server that was checked; the reconciler checks, and rebuilds
what does not agree. Meanwhile an operator adds a unit, and is told so.
*/
#ifndef PERSONS
#define PERSONS 2
#endif
#define SOLD_OUT_AT(s) quantity_told
#define IDENTITIES
byte quantity_told;
#include "protocol.pml"
#ifdef WITHOUT_EXAMINATION
#define EXAMINED true
#else
#define EXAMINED (!BEHIND(0))
#endif

#define AFTER_FENCE bless()
/* Once every drop agrees or is closed; a drop that is closed is loaded afterwards. */
inline bless() {
  atomic {
    if
    :: server > 0 && redis[0].identity == server && blessed == previous && EXAMINED -> blessed = server; checking = 0
    :: else
    fi;
    server = 0; previous = 0
  }
}
#include "rebuilding.inc.pml"
#ifndef TRIES
#define TRIES 2
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef RESTOCKS
#define RESTOCKS 0
#endif

Server replica;
bit failed;                  /* the one fault has happened */

inline copy(from, to) {
  d_step {
    to.published = from.published; to.loaded = from.loaded;
    to.available = from.available; to.pending = from.pending; to.issued = from.issued;
    to.quantity = from.quantity; to.version = from.version; to.stream = from.stream;
    to.version_told = from.version_told;
    to.holders[1] = from.holders[1]; to.holders[2] = from.holders[2]; to.holders[3] = from.holders[3];
    to.holders[4] = from.holders[4]; to.holders[5] = from.holders[5]; to.holders[6] = from.holders[6]
  }
}

proctype person(byte p) {
  byte tries;
  do
  :: tries < TRIES ->
    atomic {
      tries++;
      if
#ifndef WITHOUT_RUN_ID_FENCE
      :: redis[0].identity != blessed -> skip          /* 503 rebuilding */
#endif
      :: else -> grab(0, p)
      fi
    }
  :: break
  od
}

proctype operator() {
  byte restocks, epoch, version;
  do
  :: restocks < RESTOCKS ->
    d_step { ledger_quantity++; ledger_version++; epoch = ledger_epoch; version = ledger_version; restocks++ }
    define(0, epoch, version, ledger_quantity, true);
    atomic { quantity_told = QUANTITY + restocks; epoch = 0; version = 0 }
  :: restocks == RESTOCKS -> break
  od
}

proctype nemesis() {
  if
  :: copy(redis[0], replica);
    atomic { copy(replica, redis[0]); redis[0].identity = 2; lost = 1; failed = 1 }
  :: atomic { copy(replica, redis[0]); redis[0].identity = 2; lost = 1; failed = 1 }  /* without its data */
  :: atomic { copy(replica, redis[0]); lost = 1; failed = 1 }                         /* FLUSHALL */
  fi;
  d_step {
    replica.published = 0; replica.loaded = 0; replica.available = 0; replica.pending = 0; replica.issued = 0;
    replica.quantity = 0; replica.version = 0; replica.version_told = 0; replica.stream = 0; replica.holders[1] = 0
  }
}

proctype reconciler() {
  REBUILDER;
  end: do
  :: atomic {                                          /* an unknown server: bless_server */
      blessed != redis[0].identity && MAY_BEGIN -> server = redis[0].identity; previous = blessed; checking = server
    };
    if
    :: atomic { BEHIND(0) -> skip }; define(0, ledger_epoch, ledger_version, ledger_quantity, true)
    :: atomic { AGREES(0) || BEHIND(0) -> skip }
#ifdef WITHOUT_EXAMINATION
    :: skip
#endif
    :: atomic { !AGREES(0) && !BEHIND(0) && MAY_BEGIN -> begin_rebuild(0) }; rebuild(0)
    fi;
    bless()
#ifndef WITHOUT_LOOKS
  :: atomic { blessed == redis[0].identity && BEHIND(0) -> define(0, ledger_epoch, ledger_version, ledger_quantity, true) }
  :: atomic {
      blessed == redis[0].identity && !AGREES(0) && !BEHIND(0) && RESTS(0) && MAY_BEGIN -> begin_rebuild(0)
    };
    rebuild(0)
#endif
  od
}

proctype rest() {
  timeout;
  assert(failed && blessed == redis[0].identity && AGREES(0) && redis[0].pending == 0);
  assert(redis[0].available + ledger_issued == ledger_quantity);                      /* nothing is stranded */
  assert((told & ~rows) == 0)
}

init {
  d_step {
    quantity_told = QUANTITY; crashes_left = CRASHES;
    redis[0].identity = 1; redis[0].published = 1; redis[0].loaded = 1;
    redis[0].available = QUANTITY; redis[0].quantity = QUANTITY; redis[0].version = 1
  }
  atomic {
    run person(0); run person(1); run drainer(0);
#ifndef ONE_DRAINER
    run drainer(0);
#endif
    
    run nemesis(); run reconciler(); run operator(); run rest()
  }
}
