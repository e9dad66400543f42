"""Whatever the express way reads off the wire, the HTTP parser reads the same; else it reads nothing."""

import os

import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from couponsvc.api.express_head import read_head

EXAMPLES_COUNT = 5_000 if "COUPONSVC_FUZZ" in os.environ else 1_500
USUAL_NAMES = ["Content-Type", "Signature", "X-Request-Id", "Accept", "Prefer", "X-A"]
ODD_NAMES = [
    "Host",
    "content-length",
    "Connection",
    "Transfer-Encoding",
    "Expect",
    "TE",
    "Upgrade",
    "X_B",
    "x b",
    "",
]
NAMES = st.sampled_from(USUAL_NAMES * 4 + ODD_NAMES)
VALUES = st.one_of(
    st.sampled_from(["1", "12", "0012", "+12", "12 ", " 12", "4097", "99999", "-1", "0x1", "12, 12", ""])
    | st.sampled_from(["keep-alive", "close", "Keep-Alive", "upgrade", "chunked", "100-continue", "h"])
    | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12),
    st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=12),
)
REQUEST_LINES = st.sampled_from(
    ["POST /v1/drops/wed-1/grabs HTTP/1.1"] * 40
    + ["POST /v1/drops/wed-1/grabs HTTP/1.0", "POST /v1/drops/wed%2d1/grabs HTTP/1.1"]
    + ["POST /v1/drops/wed-1/grabs?x=1 HTTP/1.1", "POST  /v1/drops/wed-1/grabs HTTP/1.1"]
    + ["POST /v1/drops/Wed/grabs HTTP/1.1", "post /v1/drops/wed-1/grabs HTTP/1.1"]
)
ENDS = st.sampled_from(["\r\n"] * 60 + ["\n", "\r", "\r\n ", "\r\n\t"])


class Reading:
    """What httptools says of some bytes."""

    def __init__(self, data: bytes) -> None:
        self.url, self.body, self.complete_count = b"", b"", 0
        self.lines: list[tuple[bytes, bytes]] = []
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.lines.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete_count += 1


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    body = draw(st.text(st.characters(max_codepoint=127), max_size=14))
    usual = [("Host", "h"), ("Content-Length", str(len(body)))]
    lines = usual * draw(st.sampled_from([1] * 8 + [0, 2])) + draw(
        st.lists(st.tuples(NAMES, VALUES), max_size=3)
    )
    text = draw(REQUEST_LINES) + draw(ENDS)
    for name, value in draw(st.permutations(lines)):
        text += name + draw(st.sampled_from([": "] * 40 + [":", " :", ":  "])) + value + draw(ENDS)
    return (text + draw(ENDS) + body).encode("latin-1")


@pytest.mark.slow  # generates fifteen hundred requests
@settings(max_examples=EXAMPLES_COUNT, deadline=None)
@given(requests())
@example(b"POST /v1/drops/wed-1/grabs HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}")
def test_a_head_is_read_as_the_parser_reads_it_or_not_at_all(data: bytes) -> None:
    head = read_head(data)
    if head is None:
        return
    if len(data) < head.body_end:
        data += b" " * (head.body_end - len(data))
    reading = Reading(data[: head.body_end])
    assert reading.complete_count == 1
    assert (reading.url, reading.parser.get_method()) == (head.raw_path, b"POST")
    assert reading.parser.get_http_version() == "1.1"
    assert reading.parser.should_keep_alive()
    assert not reading.parser.should_upgrade()
    assert reading.body == data[head.body_begin : head.body_end]
    assert {name: value.strip(b" ") for name, value in head.fields.items()} == {
        name: value.strip(b" ") for name, value in reading.lines
    }
    assert len(reading.lines) == len(head.fields)


def test_a_usual_grab_is_read() -> None:
    data = b"POST /v1/drops/wed-1/grabs HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nX-A: b c\r\n\r\n{}"
    head = read_head(data)
    assert head is not None
    assert (head.drop_id, head.raw_path) == ("wed-1", b"/v1/drops/wed-1/grabs")
    assert head.fields == {b"host": b"h", b"content-length": b"2", b"x-a": b"b c"}
    assert data[head.body_begin : head.body_end] == b"{}"
