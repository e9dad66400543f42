"""What a client process is told to do. The secret travels through a pipe, never on a command line."""

from typing import Final

import msgspec

EARLY_SHARE: Final = 0.02
"""Persons whose watch is fast: they press up to `EARLY_S` before the opening."""
EARLY_S: Final = 1.5
DROPPED_SHARE: Final = 1 / 3
"""Presses whose answer is lost while there is still something to win: a third of the winners retry."""
DROPPED_PAUSE_S: Final = 0.15
"""How long at most somebody looks at a broken page before pressing again."""
GREYED_SHARE: Final = 0.7
"""Persons who go past a second or third choice that the app shows as sold out; the rest press anyway."""
DOUBLE_SHARE: Final = 0.03
"""Presses that an impatient finger makes twice, under a second number."""
MISMATCH_SHARE: Final = 0.01
"""Winners whose partner reuses the number for somebody else."""
LATE_SHARE: Final = 0.05
"""Persons who come after everybody else has been answered."""
COME_BACK_S: Final = 0.2
"""Pause before asking again where a refusal said `retryable`."""
ROUNDS_MAX_COUNT: Final = 5
"""How often a person goes through all denominations while refusals say `retryable`."""
ATTEMPTS_MAX_COUNT: Final = 40
"""Attempts with one number through lost answers, 202 and 503 before somebody gives up: about 30 s."""
UNREACHABLE_MAX_S: Final = 30.0
"""After so long without any connection the service is not coming back."""
PREFERENCES: Final = ((2, 1, 0), (1, 2, 0), (0, 1, 2))
"""Orders in which denominations are tried: places in the list of drops, which rises in value."""
PREFERENCE_SHARES: Final = (0.5, 0.3, 0.2)
PROGRESS_EVERY_S: Final = 0.25


class CrowdPlan(msgspec.Struct, frozen=True):
    """One client process' part of the crowd."""

    base_url: str
    key_id: str
    secret: str
    drop_ids: list[str]
    """By rising value."""
    opens_ns: int
    """Unix time by Redis' clock, which is this machine's."""
    run: str
    """Prefix of every number, so that two runs never share one."""
    first_person: int
    persons_count: int
    connections_count: int
    seed: int
    records_path: str


class Progress(msgspec.Struct, frozen=True):
    """One line of a client process' standard output."""

    requests_count: int
    outcomes: dict[str, int]
    cpu_s: float
    finished: bool
