"""What the crowd sends: the client's requests, dated by the deployment's clock, as bytes."""

import httptools
import pytest
from loadtests.clock import RunClock
from loadtests.driver.requests import Signer
from loadtests.persons.person import GRAB, LOOK_UP, Step

from couponsvc.client.requests import Request, grab_request, look_up_request
from couponsvc.support.signing import HmacKey, sign

KEY = HmacKey("key-1", b"k" * 32)
NUMBER = "run-1/ü"


class Stopped(RunClock):
    """A clock that stands at a moment, in ms of Unix time."""

    def wall_ms(self) -> float:
        return 1_700_000_000_400.0


class Read:
    """What a server reads of a request."""

    def __init__(self, data: bytes) -> None:
        self.url = self.body = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


@pytest.mark.parametrize(
    ("what", "request_"),
    [
        (GRAB, grab_request("drop-1", "p-1", NUMBER, channel="load")),
        (LOOK_UP, look_up_request("drop-1", NUMBER)),
    ],
)
def test_a_step_is_the_clients_request_signed_at_the_deployments_time(what: str, request_: Request) -> None:
    signer = Signer(KEY, Stopped(), offset_ms=2_700.0)
    read = Read(signer.request(Step(0.0, what, 0, NUMBER), "drop-1", "p-1").raw("service:8000"))
    proof = sign(KEY, request_.method, request_.path, body=request_.body, created_s=1_700_000_003)
    about_body = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(request_.body))]
    assert read.complete
    assert read.parser.get_method() == request_.method
    assert (read.url, read.body) == (request_.target, request_.body)
    assert read.headers == [(b"host", b"service:8000"), *proof, *(about_body if request_.body else [])]


def test_a_connection_that_is_not_kept_says_so() -> None:
    signed = Signer(KEY, Stopped(), 0.0).grab("drop-1", "p-1", NUMBER)
    assert (b"connection", b"close") in Read(signed.raw("service:8000", keep_alive=False)).headers
    assert Read(signed.raw("service:8000")).parser.should_keep_alive()
