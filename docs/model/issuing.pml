/*
issuing: an ordinary day. Persons grab and ask again, two drainers die and take over from each other,
one person's number stands for somebody else already, so that this unit goes back to stock.
No server is lost; so conservation holds after every step, not only at rest.
*/
#define PERSONS 3
#define SPOILED 0
#include "protocol.pml"
#ifndef TRIES
#define TRIES 2
#endif

proctype person(byte p) {
  byte tries;
  do
  :: tries < TRIES -> atomic { tries++; grab(0, p) }
#ifdef WITHOUT_JOURNAL_IN_THE_SAME_STEP
    d_step {
      redis[0].stream = redis[0].stream | unwritten; unwritten = 0
    }
  :: atomic { unwritten != 0 && crashes_left > 0 -> crashes_left--; unwritten = 0 } /* the API process dies */
#endif
  :: break
  od
}

proctype rest() {
  timeout; /* nobody can do anything any more: everything is drained */
  assert(redis[0].pending == 0 && redis[0].available + ledger_issued == ledger_quantity);
  assert(redis[0].holders[1] == rows);
  assert((told & ~rows) == 0)
}

init {
  d_step {
    crashes_left = 2;
    redis[0].identity = 1; redis[0].published = 1; redis[0].loaded = 1;
    redis[0].available = QUANTITY; redis[0].quantity = QUANTITY; redis[0].version = 1
  }
  atomic { run person(0); run person(1); run person(2); run drainer(0); run drainer(0); run rest() }
}
