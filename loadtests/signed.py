"""A few signed calls, one at a time: to read the deployment's clock and its drops. Not for load."""

import time
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self

import httpx2
import msgspec

from couponsvc.client import Unreachable
from couponsvc.support.signing import SigningKey, sign
from loadtests.clock import Exchange, RunClock

TIMEOUT_S: Final = 10.0
CLOCK_GRABS_COUNT: Final = 9
"""The first pays for the connection; of the others the quickest decides."""


class SignedCalls:
    """Signs and sends; close it, or use it as a context.

    Raises:
        Unreachable: from every call, if no answer comes.
    """

    def __init__(self, base_url: str, key: SigningKey) -> None:
        self._key: Final = key
        self.refused = ""
        self._http: Final = httpx2.Client(base_url=base_url, timeout=TIMEOUT_S, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """One request: `(status, object)`; an empty object where the body is none."""
        content = b"" if body is None else msgspec.json.encode(body)
        proof = sign(self._key, method.encode(), path.encode(), body=content, created_s=int(time.time()))
        headers = {name.decode(): value.decode() for name, value in proof}
        if content:
            headers["content-type"] = "application/json"
        try:
            response = self._http.request(method, path, content=content or None, headers=headers)
            found = msgspec.json.decode(response.content)
        except httpx2.TransportError as error:
            raise Unreachable(f"no answer to {method} {path}: {error or type(error).__name__}") from error
        except msgspec.MsgspecError:
            return response.status_code, {}
        return response.status_code, found if isinstance(found, dict) else {}

    def exchanges(self, clock_drop_id: str, who: str, clock: RunClock) -> list[Exchange]:
        """Grab a few vouchers of the clock drop, each for a new person named after `who`.

        What is answered otherwise tells nothing about the clock; `refused` keeps the last of it.
        """
        found = []
        self.refused = ""
        for turn in range(CLOCK_GRABS_COUNT):
            body = {"person_token": f"clock-{who}-{turn}", "out_request_no": f"clock-{who}-{turn}"}
            sent_ms = clock.wall_ms()
            status, voucher = self.call("POST", f"/v1/drops/{clock_drop_id}/grabs", body)
            answered_ms = clock.wall_ms()
            if status == httpx2.codes.CREATED:
                found.append(Exchange(sent_ms, unix_ms(voucher["issued_at"]), answered_ms))
            else:
                self.refused = f"{status} {voucher.get('code', '')}".strip()
        return found


def unix_ms(moment: str) -> float:
    """Unix milliseconds of an RFC 3339 moment.

    Raises:
        ValueError: it is none.
    """
    return datetime.fromisoformat(moment).timestamp() * 1_000
