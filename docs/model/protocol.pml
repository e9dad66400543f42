/*
protocol: the atomic steps of the service, one inline each; the models beside this file include it.

One drop, one voucher per person, one grab per batch. What one Lua script or one transaction does is one
atomic step here; between two steps anything may happen, for as long as it likes, so a process that is
paused (SIGSTOP) and resumed needs no words of its own. A process that dies forgets where it was.

-DWITHOUT_<RULE> removes one rule. A model that then still passes proves nothing about the rule.
*/
#ifndef PERSONS
#define PERSONS 2
#endif
#ifndef QUANTITY
#define QUANTITY 1
#endif
#ifndef SERVERS
#define SERVERS 1
#endif
#define EPOCHS 7  /* more than any run uses; raising beyond it is an endless chain of rebuilds: an error */
#define GRANTS 6  /* grants that a run may make; then the gate is not asked again */
#define NOBODY 15 /* whose number stands for somebody else, unless a model says who that is */
#ifndef SPOILED
#define SPOILED NOBODY
#endif

#define HAS(set, member) (((set) >> (member)) & 1)
#define WITH(set, member) ((set) | (1 << (member)))
#define COUNT(set) (((set) & 1) + (((set) >> 1) & 1) + (((set) >> 2) & 1))
#define LESS(set, member) ((set) & ~(1 << (member)))

typedef Server { /* what one Redis holds of the drop; keys of its published epoch only, and the loaders' */
  byte identity;             /* run id and replication id */
  short published;           /* 0: none; negative: fenced, and which it was */
  bit loaded;                /* the state hash of the published epoch is there */
  byte available, pending, issued, quantity, version;
  byte version_told;         /* of a definition that was told while the drop was closed */
  byte holders[EPOCHS];      /* per epoch the set of persons */
  byte stream                /* the set of grants that are not acknowledged */
};
Server redis[SERVERS];

byte person_of[GRANTS], epoch_of[GRANTS], grant_count; /* what each entry says; its index is its id */

byte ledger_epoch = 1, ledger_quantity = QUANTITY, ledger_version = 1, ledger_issued; /* the row of the drop */
byte rows;                   /* the set of persons with a voucher */
bit row_lock;                /* an operator's transaction holds the row of the drop */
byte blessed = 1;            /* the server that was checked last */
byte checking;               /* the server that is being checked; 0: none */

byte told;                   /* the set of persons that were told: issued */
byte unwritten;               /* grants that are not on the stream yet; only without its rule */
bit lost;                    /* a server was lost; until the drop is rebuilt what follows may be drift */

mtype = { COMMITTED, MISMATCH, EXCEEDED, STALE, NONE };

/* I1 within Redis, and across. Where no server was ever lost both hold after every step. */
#define SUM(s) (redis[s].available + redis[s].pending + redis[s].issued)
#define OPEN(s) (redis[s].loaded && redis[s].published > 0)
#define CURRENT(s) (OPEN(s) && redis[s].published == ledger_epoch)
#if !defined(REVOKING) || defined(WITHOUT_REVOKED_IS_NO_REPLAY)
#define GONE(p) false
#else
#define GONE(p) HAS(revoked, p)
#endif
#ifndef STANDING
#define STANDING rows
#define RETURNS_DUE(s) 0
#endif
#define ACCOUNTED(s) (redis[s].issued <= ledger_issued + RETURNS_DUE(s) \
                      && ledger_issued + RETURNS_DUE(s) <= redis[s].issued + redis[s].pending)
#define CONSERVED(s) (!CURRENT(s) || (SUM(s) == redis[s].quantity && ACCOUNTED(s)))
#ifndef CHECK
#define CHECK(s) assert(lost || CONSERVED(0))
#endif
/* What the reconciler compares: exactly at rest, within bounds in motion. */
#define AGREES(s) (CURRENT(s) && SUM(s) == redis[s].quantity && redis[s].quantity == ledger_quantity \
                   && redis[s].version == ledger_version \
                   && ((redis[s].pending == 0 && redis[s].issued == ledger_issued && RETURNS_DUE(s) == 0 \
                        && redis[s].holders[ledger_epoch] == STANDING) \
                       || (redis[s].pending > 0 && redis[s].stream != 0 && ACCOUNTED(s) \
                           && ((STANDING) & ~redis[s].holders[ledger_epoch]) == 0)))
#define BEHIND(s) (CURRENT(s) && redis[s].version < ledger_version)
#define RESTS(s) (redis[s].pending == 0 || redis[s].stream == 0)

/* Of models with several servers: the one that is used is the only one that is committed from; the blessed one
   refuses nobody who has a voucher. */
#ifdef IDENTITIES
#define KNOWN_TO(s, p) assert(checking != 0 || redis[s].identity != blessed || !HAS(rows, p))
#else
#define KNOWN_TO(s, p) skip
#endif
#if defined(IDENTITIES) && !defined(WITHOUT_SOURCE_FENCE)
#define USED(server) ((checking -> checking : blessed) == server)
#else
#define USED(server) true
#endif

#ifndef SOLD_OUT_AT
#define SOLD_OUT_AT(s) redis[s].quantity
#endif

/* grab_batch.lua, for one person. */
inline grab(s, p) {
  d_step {
    if
    :: grant_count == GRANTS -> skip
#ifdef WITHOUT_MISSING_IS_NOT_ZERO
    :: grant_count < GRANTS && !OPEN(s) -> assert(ledger_issued >= ledger_quantity) /* says sold out for good */
#else
    :: grant_count < GRANTS && !OPEN(s) -> skip                             /* FENCED */
#endif
    :: grant_count < GRANTS && OPEN(s) ->
      if
#ifndef WITHOUT_HOLDERS_CHECK
      :: HAS(redis[s].holders[redis[s].published], p) -> skip               /* REPEATED or REPEATED_PENDING */
#endif
      :: else ->
        if
        :: redis[s].available == 0 && redis[s].pending == 0 && redis[s].issued >= redis[s].quantity ->
          KNOWN_TO(s, p);
          assert(ledger_issued >= SOLD_OUT_AT(s))                           /* SOLD_OUT, for good: is it true? */
        :: redis[s].available == 0 && !(redis[s].pending == 0 && redis[s].issued >= redis[s].quantity) ->
          KNOWN_TO(s, p)                                                    /* SOLD_OUT_PENDING */
        :: redis[s].available > 0 ->                                        /* GRANTED */
          redis[s].available--; redis[s].pending++;
          redis[s].holders[redis[s].published] = WITH(redis[s].holders[redis[s].published], p);
          person_of[grant_count] = p; epoch_of[grant_count] = redis[s].published;
#ifdef WITHOUT_JOURNAL_IN_THE_SAME_STEP
          unwritten = WITH(unwritten, grant_count);
#else
          redis[s].stream = WITH(redis[s].stream, grant_count);
#endif
          grant_count++;
#ifdef WITHOUT_CONFIRMED_MEANS_COMMITTED
          told = WITH(told, p)
#endif
        fi
      fi
    fi;
    CHECK(s)
  }
}

/* One transaction of the drainer for one grant that it read from a server: ledger/verdicts.py, in its order. */
inline commit(g, from, verdict) {
  d_step {
    row_lock == 0;
    if
    :: !USED(from) -> verdict = NONE                 /* UncheckedServer: dropped, and read again where it is */
    :: USED(from) && person_of[g] == SPOILED -> verdict = MISMATCH
#if defined(REVOKING) && !defined(WITHOUT_REVOKED_IS_NO_REPLAY)
    :: USED(from) && HAS(rows, person_of[g]) && HAS(revoked, person_of[g]) -> verdict = MISMATCH /* the unit goes back at once */
#endif
#ifndef WITHOUT_PERSON_GUARD
    :: USED(from) && person_of[g] != SPOILED && HAS(rows, person_of[g]) && !GONE(person_of[g]) -> verdict = COMMITTED   /* a replay */
#endif
#ifndef WITHOUT_EPOCH_FENCE
    :: USED(from) && person_of[g] != SPOILED && !HAS(rows, person_of[g]) && epoch_of[g] != ledger_epoch -> verdict = STALE
#endif
    :: else ->
      if
#ifndef WITHOUT_QUANTITY_GUARD
      :: ledger_issued >= ledger_quantity -> verdict = EXCEEDED
#endif
      :: else ->
        assert(!HAS(rows, person_of[g]));          /* never two for one person */
        rows = WITH(rows, person_of[g]); ledger_issued++; verdict = COMMITTED;
        assert(ledger_issued <= ledger_quantity)   /* never one too many */
      fi
    fi;
    assert(verdict != EXCEEDED || lost);           /* who was told pending gets one, unless a server was lost */
    CHECK(0)
  }
}

/* The confirmation that the drainer publishes. */
inline tell(g, verdict) {
  d_step {
    if
    :: verdict == COMMITTED -> assert(HAS(rows, person_of[g])); told = WITH(told, person_of[g])
    :: else
    fi
  }
}

/* acknowledge.lua, for one entry. */
inline acknowledge(s, g, verdict) {
  d_step {
    if
#ifndef WITHOUT_RETURN_TOKEN
    :: !HAS(redis[s].stream, g) -> skip            /* XACK answers 0: somebody else was first */
#endif
    :: else ->
      redis[s].stream = LESS(redis[s].stream, g);
      if
#ifdef WITHOUT_EPOCH_AT_ACKNOWLEDGEMENT
      :: OPEN(s) ->
#else
      :: OPEN(s) && redis[s].published == epoch_of[g] ->
#endif
        redis[s].pending--;
        if
        :: verdict == COMMITTED -> redis[s].issued++
        :: verdict == MISMATCH -> redis[s].available++;
          redis[s].holders[epoch_of[g]] = LESS(redis[s].holders[epoch_of[g]], person_of[g])
        :: else ->
#ifdef WITHOUT_NO_RETURN_OF_PHANTOMS
          redis[s].available++;
#endif
          redis[s].holders[epoch_of[g]] = LESS(redis[s].holders[epoch_of[g]], person_of[g])
        fi
      :: else
      fi
    fi;
    CHECK(s)
  }
}

/* define_drop.lua; committed: Postgres has it for certain. */
inline define(s, epoch, version_asked, quantity_asked, committed) {
  d_step {
    if
    :: !OPEN(s) || redis[s].published != epoch ->                                       /* FENCED */
      if
      :: committed && redis[s].version_told < version_asked -> redis[s].version_told = version_asked
      :: else
      fi
#ifndef WITHOUT_VERSIONS
    :: OPEN(s) && redis[s].published == epoch && redis[s].version >= version_asked -> skip /* ALREADY */
#endif
    :: else ->
      if
      :: redis[s].available + quantity_asked < redis[s].quantity -> skip                /* CONFLICT */
      :: else ->
        redis[s].available = redis[s].available + quantity_asked - redis[s].quantity;
        redis[s].quantity = quantity_asked; redis[s].version = version_asked            /* APPLIED */
      fi
    fi;
    CHECK(s)
  }
}

/* Any entry that is on the stream: new, one's own, or taken over from a drainer that seems dead. */
inline read_entry(s, g, from) {
  atomic {
    redis[s].stream != 0;
    g = 0; from = redis[s].identity;
    do
    :: HAS(redis[s].stream, g) -> break
    :: (redis[s].stream >> (g + 1)) != 0 -> g++
    od
  }
}

byte crashes_left;
#define MAY_DIE :: atomic { crashes_left > 0 -> crashes_left--; goto reborn }

proctype drainer(byte s) {
  byte g, from; mtype verdict = NONE;
  end: do
  :: read_entry(s, g, from);
#ifdef WITHOUT_COMMIT_FIRST
    acknowledge(s, g, COMMITTED);
#endif
#ifdef WITHOUT_COMMIT_BEFORE_TELLING
    tell(g, COMMITTED);
#endif
    if MAY_DIE :: skip fi;
    commit(g, from, verdict);
    if MAY_DIE :: atomic { verdict == NONE -> goto reborn } :: atomic { verdict != NONE -> skip } fi;
    tell(g, verdict);
    acknowledge(s, g, verdict);
    reborn: atomic { g = 0; from = 0; verdict = NONE }
  od
}
