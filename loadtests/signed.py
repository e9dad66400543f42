"""A few signed calls, one at a time: to read the deployment's clock and its drops. Not for load."""

from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from couponsvc.client import ONCE, PartnerClient, Unreachable
from couponsvc.client.answers import ISSUED, LOST, Answer
from couponsvc.client.requests import Request
from couponsvc.support.signing import SigningKey
from loadtests.clock import Exchange, RunClock

CLOCK_GRABS_COUNT: Final = 9
"""The first pays for the connection; of the others the quickest decides."""


class SignedCalls:
    """Signs and sends; close it, or use it as a context.

    Raises:
        Unreachable: from every call, if no answer comes.
    """

    def __init__(self, base_url: str, key: SigningKey) -> None:
        self.refused = ""
        self._client: Final = PartnerClient(base_url, key.key_id, key, retries=ONCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def read(self, path: str) -> tuple[int, dict[str, Any]]:
        """One GET: `(status, object)`; an empty object where the body is none."""
        answer = _answered(self._client.send(Request(b"GET", path.encode())), path)
        try:
            found = msgspec.json.decode(answer.body)
        except msgspec.MsgspecError:
            found = None
        return answer.status, found if isinstance(found, dict) else {}

    def exchanges(self, clock_drop_id: str, who: str, clock: RunClock) -> list[Exchange]:
        """Grab a few vouchers of the clock drop, each for a new person named after `who`.

        What is answered otherwise tells nothing about the clock; `refused` keeps the last of it.
        """
        found = []
        self.refused = ""
        for turn in range(CLOCK_GRABS_COUNT):
            sent_ms = clock.wall_ms()
            name = f"clock-{who}-{turn}"
            answer = _answered(self._client.grab(clock_drop_id, name, name), clock_drop_id)
            answered_ms = clock.wall_ms()
            if answer.outcome == ISSUED:
                found.append(Exchange(sent_ms, unix_ms(answer.voucher.issued_at), answered_ms))
            else:
                self.refused = f"{answer.status} {answer.refusal.code}".strip()
        return found


def _answered(answer: Answer, asked: str) -> Answer:
    if answer.outcome == LOST:
        raise Unreachable(f"no answer about {asked}")
    return answer


def unix_ms(moment: str) -> float:
    """Unix milliseconds of an RFC 3339 moment.

    Raises:
        ValueError: it is none.
    """
    return datetime.fromisoformat(moment).timestamp() * 1_000
