"""A lane: one connection of the partner, sending what is due. Locust calls it a user.

It sends over a connection of its own, or, where LOAD_CLIENT is `session`, through locust's session:
dearer by 200 µs per request or more, for whoever doubts the one and wants to try the other.
Locust's statistics count both; refusals that the contract allows are no failures there.
"""

import os
from time import perf_counter
from typing import TYPE_CHECKING, ClassVar, Final

import gevent  # type: ignore[import-untyped] # gevent ships no types
from gevent.timeout import Timeout  # type: ignore[import-untyped] # as above
from geventhttpclient.header import Headers
from locust import FastHttpUser, task
from locust.contrib.fasthttp import LocustUserAgent

from loadtests.driver.requests import SignedRequest
from loadtests.driver.wire import Answer, Lost, Wire
from loadtests.driver.writing import Reply
from loadtests.records import ABANDONED

if TYPE_CHECKING:
    from loadtests.driver.crew import Crew

THROUGH_SESSION: Final = os.environ.get("LOAD_CLIENT") == "session"
NETWORK_TIMEOUT_S: Final = 15.0
"""Longer than the service ever waits (2 s, then 202); past it the answer is lost."""
ALLOWED: Final = frozenset({*range(200, 300), 404, 409, 429, 503})
"""Statuses that are answers, in locust's own statistics; whether they were right, the oracle says."""
IDLE_S: Final = 0.5

LocustUserAgent.valid_response_codes = ALLOWED


class UnexpectedStatus(Exception):
    """For locust's list of failures."""


class Lane(FastHttpUser):
    """Serves the crew's agenda until everybody has gone home."""

    network_timeout = NETWORK_TIMEOUT_S
    connection_timeout = NETWORK_TIMEOUT_S
    max_retries = 0
    """Locust's session must not send a request that nobody recorded."""
    max_redirects = 0
    insecure = False
    concurrency = 1
    crew: ClassVar["Crew | None"] = None
    """Of this process, while a run lasts."""
    wire: Wire

    def on_start(self) -> None:
        """Make the connection ready; leave out of the session what only costs."""
        self.wire = Wire(self.host or "", NETWORK_TIMEOUT_S)
        self.client.client.cookiejar = None

    def on_stop(self) -> None:
        """Close the connection."""
        self.wire.close()

    @task
    def serve(self) -> None:
        """Send what is due, one after the other; then stand idle until locust ends the run."""
        crew = type(self).crew
        if crew is not None:
            crew.serve(self.send)
        gevent.sleep(IDLE_S)

    def send(self, request: SignedRequest, name: str, timeout_s: float | None) -> Reply:
        """Send one request; hang up after `timeout_s`."""
        crew = type(self).crew
        assert crew is not None  # noqa: S101
        wall_ms = crew.clock.wall_ms
        exchange = self._through_session if THROUGH_SESSION else self._over_wire
        timer = None if timeout_s is None else Timeout.start_new(timeout_s)
        answer: Answer | None = None
        sent_ms = wall_ms()
        try:
            answer = exchange(request, name)
        except Timeout as fired:
            if fired is not timer:
                raise
        finally:
            # Locust's session may have taken our timeout for an error of the network.
            hung_up = timer is not None and not timer.pending
            if timer is not None:
                timer.close()
        answered_ms = wall_ms()
        if hung_up:  # in the middle of an exchange; neither connection can be used again
            self.wire.close()
            self.client.client.clientpool.close()
            self._count(request, f"{name}, hung up", answered_ms - sent_ms, None, None)
            return Reply(sent_ms, answered_ms, code=ABANDONED)
        if answer is None:
            return Reply(sent_ms, answered_ms)
        return Reply(sent_ms, answered_ms, answer.status, answer.body, answer.retry_after_s)

    def _over_wire(self, request: SignedRequest, name: str) -> Answer | None:
        began_s = perf_counter()
        answer: Answer | None = None
        failure: Exception | None = None
        try:
            answer = self.wire.exchange(request.raw(self.wire.host))
            if answer.status not in ALLOWED:
                failure = UnexpectedStatus(f"HTTP {answer.status}")
        except Lost as lost:
            failure = lost
        self._count(request, name, (perf_counter() - began_s) * 1_000, answer, failure)
        return answer

    def _count(
        self,
        request: SignedRequest,
        name: str,
        took_ms: float,
        answer: Answer | None,
        failure: Exception | None,
    ) -> None:
        """Tell locust's statistics."""
        self.environment.events.request.fire(
            request_type=request.method,
            name=name,
            response_time=took_ms,
            response_length=len(answer.body) if answer else 0,
            exception=failure,
            context={},
        )

    def _through_session(self, request: SignedRequest, name: str) -> Answer | None:
        path, body = request.request.target.decode("ascii"), request.request.body.decode()
        headers = {key.decode("ascii"): value.decode("ascii") for key, value in request.headers}
        response = self.client.request(request.method, path, name, data=body or None, headers=headers)
        if not response.status_code:
            return None
        return Answer(response.status_code, response.content or b"", _retry_after_s(response.headers))


def _retry_after_s(headers: Headers | None) -> float:
    value = None if headers is None else headers.get("retry-after")
    return float(value) if isinstance(value, str) and value.isdigit() else 0.0
