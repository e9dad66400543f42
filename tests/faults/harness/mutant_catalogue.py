"""The planted bugs that must be caught, by the stage whose rule each one takes out."""

from typing import Final

from tests.faults.harness.mutants import Edit, Mutant

_GATE: Final = ("api",)
_DRAIN: Final = ("drain",)
_RECONCILE: Final = ("reconcile",)
_GRAB_BATCH: Final = "gate/lua/grab_batch.lua"
_COMMIT_SQL: Final = "ledger/sql/commit.sql"
_CODES_LOOP: Final = "        for ticket, code in zip(flight.tickets, decision.codes, strict=True):\n"
_NUMBER_UNKNOWN: Final = (
    Edit(_GRAB_BATCH, "    elseif note == number then\n", "    elseif false then\n"),
    Edit(
        _GRAB_BATCH,
        "    elseif string.sub(note, 1, #number + 1) == number .. ' ' then\n",
        "    elseif false then\n",
    ),
)

GATE_MUTANTS: Final = (
    Mutant(
        "number_not_recognised",
        "a number that was granted before is the same grant",
        _GATE,
        "partners_repeat",
        "right_person",
        _NUMBER_UNKNOWN,
    ),
    Mutant(
        "limit_off_by_one",
        "a person is granted no more than the limit",
        _GATE,
        "partners_repeat",
        "person_limit",
        (
            Edit(_GRAB_BATCH, "for ordinal = 2, s.limit do fields", "for ordinal = 2, s.limit + 1 do fields"),
            Edit(_GRAB_BATCH, "  for ordinal = 1, s.limit do\n", "  for ordinal = 1, s.limit + 1 do\n"),
        ),
    ),
    Mutant(
        "duplicates_in_a_batch_unseen",
        "grabs of one batch see each other's grants",
        _GATE,
        "one_batch",
        "zero_drift",
        (Edit(_GRAB_BATCH, "  held[field] = number\n", ""),),
    ),
    Mutant(
        "one_unit_too_many",
        "nothing is granted that is not available",
        _GATE,
        "one_batch",
        "zero_drift",
        (
            Edit(
                _GRAB_BATCH, "  if s.available - s.taken <= 0 then\n", "  if s.available - s.taken < 0 then\n"
            ),
        ),
    ),
    Mutant(
        "final_while_pending",
        "sold out is final only when everything is issued",
        _GATE,
        "drainers_pause",
        "sold_out_final_true",
        (
            Edit(
                _GRAB_BATCH,
                "    if s.pending + s.taken == 0 and s.issued >= s.quantity then return",
                "    if true then return",
            ),
        ),
    ),
    Mutant(
        "trimmed_stream",
        "the stream of grants is never trimmed by length",
        _GATE,
        "drainers_pause",
        "nothing_pending",
        (Edit(_GRAB_BATCH, "'XADD', grants_key, '*',", "'XADD', grants_key, 'MAXLEN', '2', '*',"),),
    ),
    Mutant(
        "missing_read_as_zero",
        "a missing key is not zero: the drop is not loaded",
        _GATE,
        "wiped",
        "sold_out_true",
        (
            Edit(
                _GRAB_BATCH,
                "  if published[i + 1] and tonumber(published[i + 1]) == drops[i][2] then\n",
                "  if tonumber(published[i + 1] or drops[i][2]) == drops[i][2] then\n",
            ),
            Edit(
                _GRAB_BATCH,
                "    if s[1] and s[8] then",
                "    for k = 1, 8 do s[k] = s[k] or (k == 7 and '9e15' or k == 5 and '1' or '0') end\n    do",
            ),
        ),
    ),
    Mutant(
        "no_run_id_fence",
        "a server decides only after it was checked",
        _GATE,
        "stale_copy",
        "sold_out_final_true",
        (Edit("gate/connection.py", "        if found != self._blessed:\n", "        if False:\n"),),
    ),
    Mutant(
        "resent_without_number_check",
        "a batch whose reply was lost is not sent again (and a number would be recognised)",
        _GATE,
        "reply_is_lost",
        "zero_drift",
        (
            *_NUMBER_UNKNOWN,
            Edit(
                "gate/connection.py",
                "                take(ReplyLost(str(replies)))\n                return\n",
                "                asyncio.get_running_loop().call_later(\n"
                "                    0.8, lambda: self._send(command, script, keys, arguments, take)\n"
                "                )\n                return\n",
            ),
        ),
    ),
    Mutant(
        "window_not_checked",
        "nothing is granted before the opening",
        _GATE,
        "too_early",
        "opened_in_window",
        (Edit(_GRAB_BATCH, "  if now_ms < s.opens_ms then return", "  if false then return"),),
    ),
    Mutant(
        "answers_mixed_up",
        "a confirmation goes to the grab that it is about",
        _GATE,
        "one_batch",
        "right_person",
        (
            Edit(
                "batch/waiting.py",
                "            ticket = tickets[confirmation.place]\n",
                "            ticket = tickets[message.confirmations[-1].place - confirmation.place]\n",
            ),
        ),
    ),
    Mutant(
        "repeat_written_anew",
        "a repeated request gets the same bytes",
        _GATE,
        "partners_repeat",
        "confirmed_for_ever",
        (
            Edit(
                "batch/answering.py",
                "    return Answer(kind, note.seq, note.issued_ms, note.code, note.out_request_no)\n",
                "    return Answer(kind, note.seq, note.issued_ms + 1, note.code, note.out_request_no)\n",
            ),
        ),
    ),
    Mutant(
        "sold_out_remembered",
        "sold out is asked of the gate each time",
        _GATE,
        "restocked",
        "sold_out_final_true",
        (
            Edit(
                "batch/desk.py",
                "            raise Overloaded\n        self._queue.append(",
                "            raise Overloaded\n        if drop.drop_no in _over:\n"
                "            tell(answering.PLAIN[ord('X')])\n            return\n"
                "        self._queue.append(",
            ),
            Edit(
                "batch/desk.py",
                _CODES_LOOP,
                f"{_CODES_LOOP}            if code == ord('X'):\n"
                "                _over.add(ticket.grab.drop_no)\n",
            ),
            Edit("batch/desk.py", "\n\nclass Desk:\n", "\n_over: set[int] = set()\n\n\nclass Desk:\n"),
        ),
    ),
)

LEDGER_MUTANTS: Final = (
    Mutant(
        "acknowledged_before_commit",
        "an entry leaves the stream after its commit",
        _DRAIN,
        "drainer_dies_after_reading",
        "nothing_pending",
        (
            Edit(
                "ledger/drainer.py",
                "            _AFTER_READ()\n",
                "            gone = [entry.entry_id for entry in batch]\n"
                "            await acknowledge_unread(self._redis, self._shard, gone)\n"
                "            _AFTER_READ()\n",
            ),
        ),
    ),
    Mutant(
        "dead_drainer_keeps_its_entries",
        "what a dead drainer had in its hands is taken over",
        _DRAIN,
        "drainer_dies_after_reading",
        "nothing_pending",
        (
            Edit("ledger/inbox.py", "        if self._now_s() >= self._look_at_s:\n", "        if False:\n"),
            Edit(
                "ledger/inbox.py",
                "        if self._now_s() >= self._look_for_gone_at_s:\n",
                "        if False:\n",
            ),
        ),
    ),
    Mutant(
        "confirmed_before_commit",
        "a voucher is told after its commit",
        _DRAIN,
        "drainer_dies_after_its_report",
        "confirmed_stands",
        (
            Edit(
                "ledger/commit.py",
                "        rows = await connection.fetch(\n            _TO_DROP,",
                '        await connection.execute("COMMIT; BEGIN")\n'
                "        rows = await connection.fetch(\n            _TO_DROP,",
            ),
        ),
    ),
    Mutant(
        "commits_not_on_disk",
        "a commit is on disk before it is told",
        _DRAIN,
        "postgres_crashes",
        "confirmed_stands",
        (
            Edit(
                "ledger/commit.py",
                'force_generic_plan"',
                'force_generic_plan; SET synchronous_commit = off"',
            ),
        ),
    ),
    Mutant(
        "returned_without_the_token",
        "an acknowledgement has its effects once",
        _DRAIN,
        "drainer_is_overtaken",
        "zero_drift",
        (
            Edit(
                "ledger/lua/acknowledge.lua",
                "  local won = redis.call('XACK', grants_key, group, entry[1]) == 1\n",
                "  redis.call('XACK', grants_key, group, entry[1])\n  local won = true\n",
            ),
        ),
    ),
    Mutant(
        "no_epoch_check_in_postgres",
        "grants of an older epoch are refused",
        _DRAIN,
        "pending_over_a_rebuild",
        "zero_drift",
        (
            Edit(
                _COMMIT_SQL,
                "WHERE drop_no = $1::int AND epoch = $2::int AND issued",
                "WHERE drop_no = $1::int AND issued",
            ),
            Edit(
                _COMMIT_SQL,
                "ON f.drop_no = l.drop_no AND f.epoch = l.epoch AND",
                "ON f.drop_no = l.drop_no AND",
            ),
            Edit("ledger/commit.py", " and f.epoch == g.key.epoch]", "]"),
            Edit("ledger/verdicts.py", " or asked.epoch != figures.epoch:", ":"),
        ),
    ),
    Mutant(
        "number_of_another_person",
        "a number that stands for another person is refused",
        _DRAIN,
        "partners_repeat",
        "told_only_what_was_committed",
        (
            Edit(
                "ledger/verdicts.py",
                "        same = standing.drop_no == asked.drop_no and",
                "        same = True or",
            ),
        ),
    ),
    Mutant(
        "voucher_without_event",
        "a voucher and its event are written in one transaction",
        _DRAIN,
        "partners_repeat",
        "events_match",
        (
            Edit(
                _COMMIT_SQL,
                "  SELECT 'voucher.issued', drop_no, $3::int + 1, issued, '{}', issued_at\n  FROM advanced\n",
                "  SELECT 'voucher.issued', drop_no, $3::int + 1, issued, '{}', issued_at\n"
                "  FROM advanced WHERE false\n",
            ),
        ),
    ),
    Mutant(
        "numbers_with_gaps",
        "numbers are 1, 2, 3 … without gaps",
        _DRAIN,
        "partners_repeat",
        "numbers_without_gaps",
        (
            Edit(
                _COMMIT_SQL,
                "  SELECT a.drop_no, $3::int + g.place, coalesce",
                "  SELECT a.drop_no, $3::int + g.place + 1000 * ($3::int > 0)::int, coalesce",
            ),
        ),
    ),
    Mutant(
        "oversold",
        "gate and ledger, its constraint included, refuse what exceeds the quantity",
        ("api", "drain"),
        "one_batch",
        "never_too_many",
        (
            Edit(
                _GRAB_BATCH, "  if s.available - s.taken <= 0 then\n", "  if s.available - s.taken < 0 then\n"
            ),
            Edit(_COMMIT_SQL, "  WHERE l.issued + f.grants <= l.quantity\n", ""),
            Edit("ledger/verdicts.py", "    if figures.issued >= figures.quantity:\n", "    if False:\n"),
        ),
        schema="ALTER TABLE drops DROP CONSTRAINT drops_issued_within_quantity",
        schema_again="ALTER TABLE drops ADD CONSTRAINT drops_issued_within_quantity"
        " CHECK (issued BETWEEN 0 AND quantity)",
    ),
)

FEED_MUTANTS: Final = (
    Mutant(
        "feed_passes_over",
        "the feed goes on right behind what was read",
        _GATE,
        "partners_repeat",
        "feed_complete",
        (
            Edit(
                "outbox/sql/events.sql",
                "::int])::int[]) AND event_no > $2\n",
                "::int])::int[]) AND event_no > $2 + 2\n",
            ),
        ),
    ),
)

RECONCILE_MUTANTS: Final = (
    Mutant(
        "holders_not_loaded",
        "a rebuilt drop knows its holders before it is opened",
        _RECONCILE,
        "wiped",
        "one_number_one_answer",
        (
            Edit("gate/loading.py", "        await _store(bulk, holders_keys, portions)\n", ""),
            Edit("gate/lua/publish_epoch.lua", "redis.call('HLEN', holders_key) ~= issued or ", ""),
        ),
    ),
    Mutant(
        "published_without_comparing",
        "an older epoch never replaces a newer one, and none is opened without its holders",
        _RECONCILE,
        "two_rebuild",
        "zero_drift",
        (
            Edit(
                "gate/lua/publish_epoch.lua",
                "if published and math.abs(tonumber(published)) >= epoch then return 'R' end\n",
                "",
            ),
            Edit("gate/lua/publish_epoch.lua", "redis.call('HLEN', holders_key) ~= issued or ", ""),
        ),
    ),
)

MUTANTS: Final = (*GATE_MUTANTS, *LEDGER_MUTANTS, *FEED_MUTANTS, *RECONCILE_MUTANTS)
