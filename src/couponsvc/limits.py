"""Every bound of the service, with its reason, and how the bounds relate.

A number that limits a queue, a batch, a wait, a retry or a size lives here and
nowhere else. Assertions at the end fail the import when two of them disagree.
"""

from typing import Final

# --- HTTP -------------------------------------------------------------------------------------
GRAB_BODY_MAX_BYTES: Final = 4 * 1024
"""Contract: a grab's body. The longest valid one is under 600 bytes."""
BODY_MAX_BYTES: Final = 1024 * 1024
"""Contract: every other body."""
HEADERS_MAX_COUNT: Final = 100
"""A grab needs eight; what more a proxy adds is far below this."""
HEAD_MAX_BYTES: Final = 16_384
"""Request line and header fields together; a signed grab's head has about 700 bytes."""
REQUEST_ID_MAX_CHARS: Final = 128
SIGNATURE_WINDOW_S: Final = 300
"""Contract: `created` within this of our clock, either way."""
PERSON_TOKEN_MAX_CHARS: Final = 128
OUT_REQUEST_NO_MAX_CHARS: Final = 64
CHANNEL_MAX_CHARS: Final = 32
LEDGER_PAGE_MAX_COUNT: Final = 10_000
"""Vouchers in one page of the ledger export: about 4 MB of lines."""
LOOKUP_PAGE_MAX_COUNT: Final = 100
"""Vouchers that a search by person answers with."""
DEFINITIONS_PAGE_MAX_COUNT: Final = 500
"""Programs or drops in one page of a list: about 200 kB."""

# --- connections --------------------------------------------------------------------------------
CONNECTIONS_MAX_COUNT: Final = 10_000
"""Open ones of one API process, some 10 kB each. A partner's pool has tens; the rest is for strangers."""
CONNECTIONS_SPARE_FILES_COUNT: Final = 256
"""File descriptors that connections leave to everything else: databases, metrics, name look-ups."""
CONNECTIONS_YIELD_SHARE: Final = 0.01
"""Of all that may be open: idle ones closed at once for lack of room. Finding them means looking at all."""
HEAD_TIMEOUT_S: Final = 10
"""From a request's first byte to the end of its head: 700 bytes even over the worst mobile network."""
BODY_TIMEOUT_S: Final = 30
"""From the end of its head to the end of its body: 1 MiB at 280 kbit/s."""
MESSAGE_MAX_BYTES: Final = 8 * BODY_MAX_BYTES
"""A whole request on the wire, the sizes of its chunks and what is thrown away of it included."""
PIPELINED_MAX_COUNT: Final = 64
"""Requests of one connection that wait for the answer before theirs; about 3 kB each."""
UNREAD_TIMEOUT_S: Final = 30
"""How long answers may lie unread by the client. The largest, 1.75 MB of events, at 470 kbit/s."""
LINGER_S: Final = 2
"""How long a connection that ends with a refusal still reads, so that the client gets to see it."""
TCP_IDLE_S: Final = 60
"""Silence after which TCP itself asks whether the other side still exists."""
TCP_UNACKNOWLEDGED_S: Final = 60
"""What was sent must have been taken by then, or TCP ends the connection. We look ourselves, and earlier."""
TCP_ASK_EVERY_S: Final = 10
TCP_UNANSWERED_MAX_COUNT: Final = 3
"""Questions without an answer after which it does not: a vanished client is noticed within 90 s."""

# --- batching -----------------------------------------------------------------------------------
BATCH_MAX_COUNT: Final = 512
"""Grabs per gate call: one script of this size runs about 1 ms, so nobody waits long behind it."""
BATCH_READY_COUNT: Final = 128
"""Grabs that leave without waiting for the gate or for the rest of what the loop is reading: so Redis,
drainer and Postgres work on the first grabs of a wave while its last ones are still being read. Half
of it costs a tenth more CPU per grab, twice as much leaves the others idle (docs/benchmarks.md)."""
BATCHES_IN_FLIGHT_MAX_COUNT: Final = 8
"""Batches on their way to the gate at once; then they grow up to BATCH_MAX_COUNT. About 10 ms of its work."""
BATCH_DROPS_MAX_COUNT: Final = 128
"""Drops per gate call: two keys each, read in one step."""
QUEUE_MAX_COUNT: Final = 8_192
"""Grabs waiting for a decision in one process: about one second of work; beyond it 503 at once."""
WAITING_MAX_COUNT: Final = 40_000
"""Grants waiting for their commit in one process; bounds memory while Postgres is away."""
RESUBMIT_MAX_COUNT: Final = 2
"""How often a grab is decided again by itself (epoch moved on, or a followed grant fell away)."""

# --- waiting ------------------------------------------------------------------------------------
CONFIRM_WAIT_MS: Final = 2_000
"""Contract: after this a granted grab is answered 202."""
NEIGHBOUR_HOLD_MS: Final = 1_000
"""How long a grab of a partner that presses may be held so that a modest one finds the way free."""
LOOKUP_AFTER_MS: Final = (100, 300, 800, 1_600)
"""When a waiter without confirmation looks in Postgres, by age of its wait."""
LOOKUP_TIMEOUT_S: Final = 0.5
"""A look-up by key takes a millisecond; one that takes this long is given up, the next one is due soon."""
SWEEP_EVERY_MS: Final = 25
"""How often overdue waiters are looked for."""

# --- gate ---------------------------------------------------------------------------------------
GATE_TIMEOUT_S: Final = 1.0
"""A decision takes about 2 ms; past this the reply counts as lost."""
GATE_CONNECT_TIMEOUT_S: Final = 0.5
GATE_RECHECK_MS: Final = 100
"""How often a closed gate asks Postgres whether the server has been blessed."""
GATE_WATCH_MS: Final = 250
"""How often an open gate asks whether another one is: a process that is still connected to an old primary grants
what is never confirmed, and refuses who got a voucher elsewhere, for as long. One row by its key."""
BACKLOG_MAX_COUNT: Final = 100_000
"""Grants on a shard's stream that are not committed: about 10 s of a drainer's work, 30 MB."""
PER_PERSON_LIMIT_MAX: Final = 16
"""Vouchers of one drop per person; the gate reads so many fields per grab."""

# --- ledger -------------------------------------------------------------------------------------
DRAIN_READ_COUNT: Final = 64
"""Stream entries per read; while reads come back full, more are merged, up to DRAIN_GRANTS_MAX_COUNT."""
DRAIN_GRANTS_MAX_COUNT: Final = 4_000
"""Grants per transaction: about 30 ms of row lock."""
DRAIN_BLOCK_MS: Final = 200
"""How long a read waits for the first entry; also how soon a drainer notices that it should stop."""
TAKE_OVER_IDLE_MS: Final = 10_000
"""Entries unacknowledged for this long belong to a dead drainer."""
STATEMENT_TIMEOUT_MS: Final = 4_000
"""Longest a ledger statement may run."""
LOCK_TIMEOUT_MS: Final = 3_000
ATTEMPTS_MAX_COUNT: Final = 5
"""Deliveries of an unreadable entry before it becomes a dead letter."""

# --- reconciling --------------------------------------------------------------------------------
RECONCILE_EVERY_MS: Final = 1_000
BLESS_EVERY_MS: Final = 200
"""How often the reconciler asks Redis who it is; bounds how long a restart stays closed."""
DRAIN_PATIENCE_MS: Final = 3_000
"""How long a check waits for the stream to empty before it decides to rebuild."""
LOAD_CHUNK_COUNT: Final = 2_000
"""Holders per HSET while loading: large enough for speed, small enough not to stall Redis."""
DEFINITION_REFRESH_MS: Final = 5_000
"""How old a cached drop definition may be without any message about it."""

# --- events -------------------------------------------------------------------------------------
EVENT_VOUCHERS_MAX_COUNT: Final = 500
"""Contract: vouchers in one event, about 175 kB."""
SEQUENCE_TURN_MAX_COUNT: Final = 500
"""Outbox rows numbered in one transaction: a tenth of a second of commits at full rush."""
SEQUENCE_EVERY_MS: Final = 100
"""How often a relay looks for outbox rows: the larger part of an event's lag."""
SEQUENCE_RUSH_COUNT: Final = 5
"""Outbox rows in a turn from which it is a rush: fifty commits a second."""
SEQUENCE_RUSH_EVERY_MS: Final = 300
"""And how often it looks then. Turns cost Postgres the same for many vouchers as for few, and so do events:
what grabs and the telling of them share is left to grabs, for a fifth of a second (docs/benchmarks.md)."""
FEED_PAGE_MAX_COUNT: Final = 500
"""Contract: events in one page of the feed."""
FEED_PAGE_VOUCHERS_MAX_COUNT: Final = 5_000
"""Vouchers after which a page of the feed ends: 1.75 MB. One event always fits."""
FEED_WAIT_MAX_S: Final = 20
"""Contract: how long a question for new events may wait; load balancers cut silence at 60 s."""
FEED_WAITERS_MAX_COUNT: Final = 2_000
"""Waiting feed readers of one process, streams included; a socket and some 50 kB each."""
FEED_WAITERS_PER_PARTNER_MAX_COUNT: Final = 100
"""One partner cannot take all of them."""
SUBSCRIPTIONS_PER_PARTNER_MAX_COUNT: Final = 16
WEBHOOK_URL_MAX_CHARS: Final = 2_048
WEBHOOK_TIMEOUT_S: Final = 15.0
"""Contract: a 2xx that is complete within this counts. Over everything: look-up, connect, TLS, answer."""
WEBHOOK_ANSWER_MAX_BYTES: Final = 64 * 1024
"""Nobody needs what a receiver says; more than this is cut off and counts by its status."""
WEBHOOK_RETRY_DELAYS_S: Final = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Between attempts (Standard Webhooks, example schedule): ten attempts within 75.6 hours."""
WEBHOOK_RETRY_JITTER: Final = 0.1
"""Each delay is lengthened by up to this share, so that what failed together does not return together."""
WEBHOOK_ROTATION_S: Final = 86_400
"""How long the old secret signs beside the new one."""
DELIVERIES_IN_FLIGHT_MAX_COUNT: Final = 256
"""Of one relay: at most 256 events in memory, 45 MB where all are full."""
DELIVERIES_PER_ENDPOINT_MAX_COUNT: Final = 8
"""At one receiver at once, from one relay: 40,000 vouchers a second at 100 ms each."""
LEASE_S: Final = 30
"""How long a delivery belongs to a relay that has died without its connection being noticed."""
REDELIVER_MAX_COUNT: Final = 100_000
"""Events that one question for redelivery may queue."""

assert UNREAD_TIMEOUT_S + LINGER_S < TCP_UNACKNOWLEDGED_S, "who does not read is counted before TCP gives up"
assert HEAD_TIMEOUT_S < BODY_TIMEOUT_S, "one timer serves both: it runs for the shorter time"
assert HEAD_MAX_BYTES + BODY_MAX_BYTES < MESSAGE_MAX_BYTES, "what is allowed must fit, chunked as well"
assert FEED_WAITERS_MAX_COUNT * 2 <= CONNECTIONS_MAX_COUNT, "waiting readers must leave room for grabs"
assert WEBHOOK_TIMEOUT_S * 2 <= LEASE_S, "a living relay must have marked a delivery before its lease ends"
assert DELIVERIES_PER_ENDPOINT_MAX_COUNT * 8 <= DELIVERIES_IN_FLIGHT_MAX_COUNT, (
    "one endpoint, an eighth at most"
)
assert SEQUENCE_EVERY_MS <= SEQUENCE_RUSH_EVERY_MS, "a rush spares what is scarce"
assert FEED_PAGE_VOUCHERS_MAX_COUNT >= EVENT_VOUCHERS_MAX_COUNT
assert LOOKUP_AFTER_MS[-1] < CONFIRM_WAIT_MS, "the last look-up must precede the 202"
assert BATCH_MAX_COUNT <= DRAIN_GRANTS_MAX_COUNT, "one entry must fit one transaction"
assert STATEMENT_TIMEOUT_MS * 2 < TAKE_OVER_IDLE_MS, "a living drainer must not be taken for dead"
assert LOCK_TIMEOUT_MS < STATEMENT_TIMEOUT_MS, "waiting for a lock must fail before the statement does"
assert BATCH_READY_COUNT <= BATCH_MAX_COUNT <= QUEUE_MAX_COUNT
assert WAITING_MAX_COUNT >= QUEUE_MAX_COUNT
assert BACKLOG_MAX_COUNT >= WAITING_MAX_COUNT, "one process alone must not fill the backlog"
