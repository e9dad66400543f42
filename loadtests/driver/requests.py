"""Signed requests, made at the moment of sending: the client's, dated by the deployment's clock."""

from typing import Final, NamedTuple

from couponsvc.client.requests import Request, grab_request, look_up_request
from couponsvc.support.signing import SigningKey, sign
from loadtests.clock import RunClock
from loadtests.persons.person import LOOK_UP, Step

CHANNEL: Final = "load"
"""Says in the ledger where these vouchers come from."""


class SignedRequest(NamedTuple):
    """What is sent."""

    request: Request
    headers: list[tuple[bytes, bytes]]
    """Without `host` and `content-length`."""

    @property
    def method(self) -> str:
        """As locust's statistics have it."""
        return self.request.method.decode("ascii")

    def raw(self, host: str, *, keep_alive: bool = True) -> bytes:
        """As HTTP/1.1 bytes, for sockets that send them in their own way."""
        request = self.request
        lines = [b"%b %b HTTP/1.1\r\nhost: %b" % (request.method, request.target, host.encode("ascii"))]
        lines += [b"%b: %b" % header for header in self.headers]
        if request.body:
            lines.append(b"content-length: %d" % len(request.body))
        if not keep_alive:
            lines.append(b"connection: close")
        return b"\r\n".join(lines) + b"\r\n\r\n" + request.body


class Signer:
    """Makes the requests of one worker.

    Args:
        key: The partner's.
        clock: This worker's.
        offset_ms: Of the deployment's clock, by which `created` is judged.
    """

    def __init__(self, key: SigningKey, clock: RunClock, offset_ms: float) -> None:
        self._key: Final = key
        self._clock: Final = clock
        self._offset_ms: Final = offset_ms

    def request(self, step: Step, drop_id: str, person_token: str) -> SignedRequest:
        """Sign one step's request; about 12 µs with its bytes."""
        if step.what == LOOK_UP:
            return self._signed(look_up_request(drop_id, step.number))
        return self.grab(drop_id, person_token, step.number)

    def grab(self, drop_id: str, person_token: str, number: str) -> SignedRequest:
        """Sign a grab."""
        return self._signed(grab_request(drop_id, person_token, number, channel=CHANNEL))

    def _signed(self, request: Request) -> SignedRequest:
        """Not by `Request.signed_headers`, which dates the proof by this machine's clock."""
        created_s = int((self._clock.wall_ms() + self._offset_ms) / 1_000)
        headers = sign(self._key, request.method, request.path, body=request.body, created_s=created_s)
        if request.body:
            headers.append((b"content-type", b"application/json"))
        return SignedRequest(request, headers)
