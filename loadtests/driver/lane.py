"""A lane: one connection of the partner, sending what is due. Locust calls it a user.

Locust's own session does the work and counts it in locust's statistics; what it does besides is
turned off where it is of no use here, because the crowd shares its cores with what it measures:
no cookies, no retries of its own (they would send a request that nobody recorded), and refusals
that the contract allows are no errors.
"""

import os
from typing import TYPE_CHECKING, ClassVar, Final

import gevent  # type: ignore[import-untyped] # gevent ships no types
from gevent.timeout import Timeout  # type: ignore[import-untyped] # as above
from geventhttpclient.header import Headers
from locust import FastHttpUser, task
from locust.contrib.fasthttp import LocustUserAgent

from loadtests.driver.requests import Request
from loadtests.driver.writing import Reply
from loadtests.records import ABANDONED

if TYPE_CHECKING:
    from loadtests.driver.crew import Crew

INSECURE: Final = "LOAD_INSECURE"
"""Set to 1 to accept any certificate, on a rehearsal deployment with one of its own."""
NETWORK_TIMEOUT_S: Final = 15.0
"""Longer than the service ever waits (2 s, then 202); past it the answer is lost."""
ALLOWED: Final = frozenset({*range(200, 300), 404, 409, 429, 503})
"""Statuses that are answers, in locust's own statistics; whether they were right, the oracle says."""
IDLE_S: Final = 0.5

LocustUserAgent.valid_response_codes = ALLOWED


class Lane(FastHttpUser):
    """Serves the crew's agenda until everybody has gone home."""

    network_timeout = NETWORK_TIMEOUT_S
    connection_timeout = NETWORK_TIMEOUT_S
    max_retries = 0
    max_redirects = 0
    insecure = os.environ.get(INSECURE) == "1"
    concurrency = 1
    crew: ClassVar["Crew | None"] = None
    """Of this process, while a run lasts."""

    def on_start(self) -> None:
        """Leave out what only costs."""
        self.client.client.cookiejar = None

    @task
    def serve(self) -> None:
        """Send what is due, one after the other; then stand idle until locust ends the run."""
        crew = type(self).crew
        if crew is not None:
            crew.serve(self.send)
        gevent.sleep(IDLE_S)

    def send(self, request: Request, name: str, timeout_s: float | None) -> Reply:
        """Send one request; hang up after `timeout_s`."""
        crew = type(self).crew
        assert crew is not None  # noqa: S101
        wall_ms = crew.clock.wall_ms
        timer = None if timeout_s is None else Timeout.start_new(timeout_s)
        sent_ms = wall_ms()
        try:
            response = self.client.request(
                request.method, request.path, name, data=request.body or None, headers=request.headers
            )
        except Timeout as fired:
            if fired is not timer:
                raise
            return Reply(sent_ms, wall_ms(), code=ABANDONED)
        finally:
            # The session may have taken the timeout for an error of the network and told locust so.
            hung_up = timer is not None and not timer.pending
            if timer is not None:
                timer.close()
        answered_ms = wall_ms()
        if hung_up:
            return Reply(sent_ms, answered_ms, code=ABANDONED)
        if not response.status_code:
            return Reply(sent_ms, answered_ms)
        body = response.content or b""
        return Reply(sent_ms, answered_ms, response.status_code, body, _retry_after_s(response.headers))


def _retry_after_s(headers: Headers | None) -> float:
    value = None if headers is None else headers.get("retry-after")
    return float(value) if isinstance(value, str) and value.isdigit() else 0.0
