"""Planted bugs that nothing can catch, because another rule of the service stands behind the missing one.

They are here so that the claim can be tried: COUPONSVC_FULL_SWEEP=1, then pytest on test_planted_bugs.py.
What is caught of each once the rule behind it is taken out as well is in `mutant_catalogue`, or said here.
"""

from typing import Final, NamedTuple

from tests.faults.harness.mutants import Edit, Mutant


class Covered(NamedTuple):
    """A planted bug without effect."""

    mutant: Mutant
    behind: str
    """What keeps the promise in its place."""


_NOTHING: Final = ""

COVERED: Final = (
    Covered(
        Mutant(
            "resent_after_a_lost_reply",
            "a batch whose reply was lost is not sent again",
            ("api",),
            "reply_is_lost",
            _NOTHING,
            (
                Edit(
                    "gate/connection.py",
                    "                take(ReplyLost(str(replies)))\n                return\n",
                    "                asyncio.get_running_loop().call_later(\n"
                    "                    0.8, lambda: self._send(command, script, keys, arguments, take)\n"
                    "                )\n                return\n",
                ),
            ),
        ),
        "the gate recognises the numbers (resent_without_number_check is caught)",
    ),
    Covered(
        Mutant(
            "returned_on_exceeded_and_stale",
            "a unit that never existed does not go back",
            ("drain",),
            "pending_over_a_rebuild",
            _NOTHING,
            (
                Edit(
                    "values/outcome.py",
                    "        return self is Verdict.MISMATCH\n",
                    "        return self in {Verdict.MISMATCH, Verdict.EXCEEDED, Verdict.STALE}\n",
                ),
            ),
        ),
        "acknowledgements count only under the published epoch, and under that one Postgres refuses nothing"
        " as exceeded or stale while run-id fence and epoch check stand; then the ledger's constraint",
    ),
    Covered(
        Mutant(
            "acknowledged_under_any_epoch",
            "an acknowledgement counts only under the published epoch",
            ("drain",),
            "pending_over_a_rebuild",
            _NOTHING,
            (
                Edit(
                    "ledger/lua/acknowledge.lua",
                    "    if published[i] and tonumber(published[i]) == drops[i][2] then\n",
                    "    if true then\n",
                ),
            ),
        ),
        "the epoch is part of the names of the keys, and keys of an older one are gone",
    ),
    Covered(
        Mutant(
            "half_loaded_read_as_loaded",
            "a state without its fields is not loaded",
            ("api",),
            "wiped",
            _NOTHING,
            (
                Edit(
                    "gate/lua/grab_batch.lua",
                    "    if s[1] and s[8] then",
                    "    for k = 1, 8 do s[k] = s[k] or (k == 7 and '9e15' or '1') end\n    do",
                ),
            ),
        ),
        "the published epoch is gone with the state, and is compared first (missing_read_as_zero is caught)",
    ),
    Covered(
        Mutant(
            "holders_not_counted",
            "an epoch is published only with as many holders as vouchers",
            ("reconcile",),
            "wiped",
            _NOTHING,
            (Edit("gate/lua/publish_epoch.lua", "redis.call('HLEN', holders_key) ~= issued or ", ""),),
        ),
        "the load itself, which is proven by comparing every note (holders_not_loaded is caught)",
    ),
    Covered(
        Mutant(
            "published_without_comparing_alone",
            "an older epoch never replaces a newer one",
            ("reconcile",),
            "two_rebuild",
            _NOTHING,
            (
                Edit(
                    "gate/lua/publish_epoch.lua",
                    "if published and math.abs(tonumber(published)) >= epoch then return 'R' end\n",
                    "",
                ),
            ),
        ),
        "whoever publishes unloads older epochs, so the older one's holders are too few"
        " (published_without_comparing is caught); of a drop without vouchers it is not hidden",
    ),
    Covered(
        Mutant(
            "exceeded_not_foreseen",
            "the ledger's statements keep within the quantity",
            ("drain",),
            "one_batch",
            _NOTHING,
            (
                Edit("ledger/sql/commit.sql", "  WHERE l.issued + f.grants <= l.quantity\n", ""),
                Edit("ledger/verdicts.py", "    if figures.issued >= figures.quantity:\n", "    if False:\n"),
            ),
        ),
        "the gate's stock, and the constraint on `drops` (oversold takes all three out, and is caught)",
    ),
    Covered(
        Mutant(
            "epoch_checked_in_one_place",
            "a drainer commits under the epoch that it foresees only",
            ("drain",),
            "pending_over_a_rebuild",
            _NOTHING,
            (Edit("ledger/commit.py", " and f.epoch == g.key.epoch]", "]"),),
        ),
        "the commit's statement compares it again (no_epoch_check_in_postgres is caught)",
    ),
)
