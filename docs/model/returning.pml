/*
returning: the old primary comes back. Server 0 is cut off and decides on for the API process that is still
connected to it; server 1, its replica as it was at any earlier moment, is checked, blessed and used. Each has
a drainer. The old server's connection lasts until its API process looks at the blessing; then the network
heals, and clients are led to server 0 again, which keeps what it had and must be checked anew.
*/
#define SERVERS 2
#define IDENTITIES
#define PERSONS 2
bit cut_off;                 /* until then server 1 is only a replica */
#define CHECK(s) assert(lost || (CONSERVED(0) && (!cut_off || CONSERVED(1))))
#include "protocol.pml"
#include "rebuilding.inc.pml"

byte address;                /* which server clients are led to */
bit healed;
bit connected[2];            /* per server: an API process has a connection that was checked when it was made */

proctype person(byte p) {
  byte tries;
  do
  :: tries < 2 ->
    atomic {
      tries++;
      if
      :: connected[0] -> grab(0, p)
      :: connected[1] -> grab(1, p)
      :: else
      fi
    }
  :: break
  od
}

proctype api() {
  end: do
#ifndef WITHOUT_RUN_ID_FENCE
  :: atomic { !connected[address] && redis[address].identity == blessed -> connected[address] = 1 }
#else
  :: atomic { !connected[address] -> connected[address] = 1 }
#endif
  :: atomic { connected[0] && (address != 0 || redis[0].identity != blessed) && (blessed != 1 || healed)
      -> connected[0] = 0 }
  :: atomic { connected[1] && redis[1].identity != blessed -> connected[1] = 0 }
  od
}

proctype nemesis() {
  d_step {
    redis[1].published = redis[0].published; redis[1].loaded = redis[0].loaded;
    redis[1].available = redis[0].available; redis[1].pending = redis[0].pending;
    redis[1].issued = redis[0].issued; redis[1].quantity = redis[0].quantity;
    redis[1].version = redis[0].version; redis[1].stream = redis[0].stream;
    redis[1].holders[1] = redis[0].holders[1]
  }
  atomic { cut_off = 1; address = 1; lost = 1 }
  if
  :: atomic { healed = 1; address = 0; lost = 1 }
  :: healed = 1
  fi
}

inline check(s) {
  if
  :: AGREES(s)
  :: atomic { !AGREES(s) && MAY_BEGIN -> begin_rebuild(s) }; rebuild(s)
  fi;
  atomic {
    if
    :: redis[address].identity == server && blessed == previous -> blessed = server; checking = 0
    :: else
    fi;
    server = 0; previous = 0
  }
}

proctype reconciler() {
  REBUILDER;
  end: do
  :: atomic { blessed != redis[0].identity && address == 0 && MAY_BEGIN -> server = 1; previous = blessed; checking = 1 };
    check(0)
  :: atomic { blessed != redis[1].identity && address == 1 && MAY_BEGIN -> server = 2; previous = blessed; checking = 2 };
    check(1)
  :: atomic { checking != 0 && blessed == redis[address].identity -> checking = 0 }         /* it is back */
  :: atomic { address == 0 && blessed == 1 && !AGREES(0) && RESTS(0) && MAY_BEGIN -> begin_rebuild(0) }; rebuild(0)
  :: atomic { address == 1 && blessed == 2 && !AGREES(1) && RESTS(1) && MAY_BEGIN -> begin_rebuild(1) }; rebuild(1)
  od
}

proctype rest() {
  timeout;
  assert(blessed == redis[address].identity);
  if
  :: address == 0 -> assert(AGREES(0) && redis[0].pending == 0 && redis[0].available + ledger_issued == QUANTITY)
  :: address == 1 -> assert(AGREES(1) && redis[1].pending == 0 && redis[1].available + ledger_issued == QUANTITY)
  fi;
  assert((told & ~rows) == 0)
}

init {
  d_step {
    redis[0].identity = 1; redis[1].identity = 2; connected[0] = 1;
    redis[0].published = 1; redis[0].loaded = 1;
    redis[0].available = QUANTITY; redis[0].quantity = QUANTITY; redis[0].version = 1
  }
  atomic {
    run person(0); run person(1); run drainer(0); run drainer(1); run api(); run nemesis(); run reconciler();
    run rest()
  }
}
