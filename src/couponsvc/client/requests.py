"""Requests as values: what each call sends, without sending it. Shared by every client here."""

import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote, urlencode

import msgspec

from couponsvc.support.signing import SigningKey, sign

REMEMBERED_MAX_COUNT: Final = 256
"""Drops whose path is kept ready: a partner grabs from a handful at a time."""

_encode = msgspec.json.Encoder().encode


class Request(NamedTuple):
    """One request, exactly as it will be signed and sent."""

    method: bytes
    path: bytes
    """Percent-encoded, without the query."""
    query: bytes = b""
    """Percent-encoded, without `?`."""
    body: bytes = b""
    repeatable: bool = True
    """Whether sending it twice does what sending it once does."""
    respond_async: bool = False
    of_grab: bool = False
    """Sent by the thousand, answered in less than 2 KiB."""
    wait_s: float = 0.0
    """How long the service was asked to hold its answer back (a question for new events)."""

    @property
    def target(self) -> bytes:
        """What stands in the request line."""
        return b"%b?%b" % (self.path, self.query) if self.query else self.path

    @property
    def place(self) -> str:
        """The path as a log may have it: without the number of a grab."""
        path = self.path.decode()
        return path.partition("/grabs/")[0] + "/grabs/…" if "/grabs/" in path else path

    def signed_headers(self, key: SigningKey) -> list[tuple[bytes, bytes]]:
        """Every header that the request brings along, signed now; names in lower case."""
        headers = sign(key, self.method, self.path, self.query, self.body, created_s=int(time.time()))
        if self.body:
            headers.append((b"content-type", b"application/json"))
        if self.respond_async:
            headers.append((b"prefer", b"respond-async"))
        return headers


@lru_cache(maxsize=REMEMBERED_MAX_COUNT)
def grabs_path(drop_id: str) -> bytes:
    """Where grabs of a drop go."""
    return _path("drops", drop_id, "grabs")


def grab_request(
    drop_id: str,
    person_token: str,
    out_request_no: str,
    *,
    channel: str | None = None,
    region: str | None = None,
    respond_async: bool = False,
) -> Request:
    """A grab (contract: Grab)."""
    fields = {"person_token": person_token, "out_request_no": out_request_no}
    if channel is not None:
        fields["channel"] = channel
    if region is not None:
        fields["region"] = region
    return Request(
        b"POST", grabs_path(drop_id), body=_encode(fields), respond_async=respond_async, of_grab=True
    )


def look_up_request(drop_id: str, out_request_no: str) -> Request:
    """The question what became of a number."""
    return Request(b"GET", grabs_path(drop_id) + b"/" + quote(out_request_no, safe="").encode(), of_grab=True)


def read_request(*parts: str, query: Mapping[str, object] | None = None, wait_s: float = 0.0) -> Request:
    """A GET below `/v1`; members of `query` that are None or empty are left out."""
    given = {name: value for name, value in (query or {}).items() if value not in {None, ""}}
    return Request(b"GET", _path(*parts), urlencode(given, quote_via=quote).encode(), wait_s=wait_s)


def act_request(*parts: str, body: object = None, repeatable: bool) -> Request:
    """A POST below `/v1`."""
    content = b"" if body is None else _encode(body)
    return Request(b"POST", _path(*parts), body=content, repeatable=repeatable)


def delete_request(*parts: str) -> Request:
    """A DELETE below `/v1`. The second time answers 404, which is as good as the first."""
    return Request(b"DELETE", _path(*parts))


def _path(*parts: str) -> bytes:
    return ("/v1/" + "/".join(quote(part, safe="") for part in parts)).encode()
