"""What persons are like: the numbers that a scenario's file gives to each kind.

None of these numbers is published for a real drop. What is: more than a million persons rush one
drop (AEJ: Macroeconomics 2023, doi 10.1257/mac.20210148), stocks are a small part of that
(Qingdao 2022: 8,000, 2,950 and 500 vouchers per drop), scripts grab among them (sellers of 抢购软件
were convicted), and partners ask again with the same number after a lost answer (WeChat Pay and
Alipay tell them to). The scenario files say which numbers are ours.
"""

from typing import Annotated, TypeAlias

import msgspec

Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0.0)]


class _Traits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    patience_s: Positive = 20.0
    """From the first press, or from the opening if that is later; then the person gives up."""
    tries_max_count: Annotated[int, msgspec.Meta(ge=1)] = 12
    """Requests in all; then the person gives up."""
    pause_s: Positive = 0.4
    """Before asking again with the same number; doubles up to ten times this, with jitter.
    `Retry-After` lengthens it."""


class App(_Traits, frozen=True, kw_only=True, tag="app"):
    """Somebody with the bank's app: presses, waits for the answer, and presses again."""

    greed_share: Share = 0.1
    """Press once more under a new number after they hold a voucher."""
    repeat_share: Share = 0.05
    """Their partner sends the answered number once more (a lost answer between it and the person)."""
    disbelief_share: Share = 0.3
    """Press again under a new number after `sold_out` for good."""
    other_drop_share: Share = 0.5
    """Try another drop of the run after `sold_out`, where there is one."""


class Hasty(_Traits, frozen=True, kw_only=True, tag="hasty"):
    """A partner whose time limit is shorter than the service's answer: it hangs up and repeats."""

    timeout_min_ms: Positive = 50.0
    timeout_max_ms: Positive = 150.0
    hasty_tries_count: Annotated[int, msgspec.Meta(ge=1)] = 3
    """Attempts with that limit; afterwards it waits as long as it takes."""


class Script(_Traits, frozen=True, kw_only=True, tag="script"):
    """A grab bot: starts before the opening and fires on whatever it is told."""

    every_ms: Positive = 100.0
    early_s: Positive = 2.0
    new_number_share: Share = 0.5
    """Shots under a new number; the others repeat the last one."""


class Double(_Traits, frozen=True, kw_only=True, tag="double"):
    """One person on several devices at once: many numbers, side by side."""

    fingers_count: Annotated[int, msgspec.Meta(ge=2, le=64)] = 8
    spread_ms: Annotated[float, msgspec.Meta(ge=0.0)] = 20.0
    """All fingers press within this."""


class Trickle(_Traits, frozen=True, kw_only=True, tag="trickle"):
    """A partner on a bad line: the request arrives byte by byte."""

    bytes_at_once_count: Annotated[int, msgspec.Meta(ge=1)] = 24
    every_ms: Positive = 250.0
    finishes_share: Share = 0.5
    """The others never send the last byte; they hold the connection and hang up."""
    hold_s: Positive = 10.0


class Stall(_Traits, frozen=True, kw_only=True, tag="stall"):
    """A partner that sends requests and does not read the answers."""

    requests_count: Annotated[int, msgspec.Meta(ge=1, le=2_000)] = 200
    """Sent one after the other on one connection (pipelined), until it is blocked."""
    hold_s: Positive = 10.0


Traits: TypeAlias = App | Hasty | Script | Double | Trickle | Stall
