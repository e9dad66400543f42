"""Requests that two readers of HTTP/1.1 may read differently, and legal ones that look like them.

From RFC 9112 §2.2, §3.2, §5.1, §5.2, §6.1, §6.3, §7.1 and the published families of request smuggling:
CL.TE, TE.CL, TE.TE, CL.CL, chunk sizes and extensions, line ends, folded lines, spaces, versions.
"""

from typing import Final

_HEAD: Final = b"POST /v1/drops/none/grabs HTTP/1.1\r\nHost: couponsvc\r\n"
_CHUNKED: Final = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
_END: Final = b"0\r\n\r\n"


def _head(*lines: bytes, body: bytes = b"ab") -> bytes:
    return _HEAD + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def _get(line: bytes, *lines: bytes) -> bytes:
    return line + b"\r\n" + b"".join(each + b"\r\n" for each in (lines or (b"Host: couponsvc",))) + b"\r\n"


REFUSED: Final = {
    # one length, stated once
    "length and coding": _head(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=_END),
    "coding and length": _head(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=_END),
    "two equal lengths": _head(b"Content-Length: 2", b"Content-Length: 2"),
    "two lengths": _head(b"Content-Length: 2", b"Content-Length: 3", body=b"abc"),
    "list of lengths": _head(b"Content-Length: 2, 2"),
    "length with plus": _head(b"Content-Length: +2"),
    "negative length": _head(b"Content-Length: -2"),
    "hexadecimal length": _head(b"Content-Length: 0x2"),
    "empty length": _head(b"Content-Length:"),
    "length with a space in it": _head(b"Content-Length: 1 2"),
    "length beyond 64 bits": _head(b"Content-Length: 99999999999999999999999"),
    "space before the colon": _head(b"Content-Length : 2"),
    "quoted length": _head(b'Content-Length: "2"'),
    # one coding, chunked
    "two codings": _head(b"Transfer-Encoding: gzip, chunked", body=_END),
    "chunked not last": _head(b"Transfer-Encoding: chunked, gzip", body=_END),
    "chunked twice": _head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=_END),
    "identity, then chunked": _head(b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked", body=_END),
    "identity": _head(b"Transfer-Encoding: identity", body=b""),
    "unknown coding": _head(b"Transfer-Encoding: xchunked", body=_END),
    "quoted coding": _head(b'Transfer-Encoding: "chunked"', body=_END),
    "vertical tab in coding": _head(b"Transfer-Encoding: \x0bchunked", body=_END),
    "empty list member": _head(b"Transfer-Encoding: chunked,", body=_END),
    "coding, space before colon": _head(b"Transfer-Encoding : chunked", body=_END),
    "coding in HTTP/1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + _END,
    # lines end in CR LF and are not folded
    "folded field": _head(b"X-A: b\r\n c", b"Content-Length: 2"),
    "folded length": _head(b"Content-Length: 2\r\n 0"),
    "folded coding": _head(b"Transfer-Encoding:\r\n chunked", body=_END),
    "folded first line": b"POST / HTTP/1.1\r\n Host: a\r\nHost: a\r\nContent-Length: 2\r\n\r\nab",
    "bare LF after a field": _head(b"X-A: b\nContent-Length: 2"),
    "bare LF at the end": _HEAD + b"Content-Length: 2\n\nab",
    "bare LF after the request line": b"POST / HTTP/1.1\nHost: a\r\nContent-Length: 2\r\n\r\nab",
    "bare CR in a field": _head(b"X-A: b\rContent-Length: 3", b"Content-Length: 2"),
    "CR CR LF": _head(b"X-A: b\r", b"Content-Length: 2"),
    "NUL in a value": _head(b"X-A: a\0b", b"Content-Length: 2"),
    "NUL in a name": _head(b"X\0A: a", b"Content-Length: 2"),
    "no colon": _head(b"XA", b"Content-Length: 2"),
    "no name": _head(b": a", b"Content-Length: 2"),
    # chunks
    "extension ends in LF": _CHUNKED + b"2;a\nb\r\nab\r\n" + _END,
    "line end in quotes": _CHUNKED + b'2;a="\r\n"\r\nab\r\n' + _END,
    "chunk line ends in LF": _CHUNKED + b"2\nab\n0\n\n",
    "space after a size": _CHUNKED + b"2 \r\nab\r\n" + _END,
    "space before a size": _CHUNKED + b" 2\r\nab\r\n" + _END,
    "0x before a size": _CHUNKED + b"0x2\r\nab\r\n" + _END,
    "negative size": _CHUNKED + b"-2\r\nab\r\n" + _END,
    "size beyond 64 bits": _CHUNKED + b"10000000000000002\r\nab\r\n" + _END,
    "chunk longer than said": _CHUNKED + b"2\r\nabX\r\n" + _END,
    "chunk without its end": _CHUNKED + b"2\r\nab" + _END,
    "length in a trailer": _CHUNKED + b"2\r\nab\r\n0\r\nContent-Length: 9\r\n\r\n",
    "no size": _CHUNKED + b"\r\nab\r\n" + _END,
    # whom it is for
    "no host": _get(b"GET / HTTP/1.1", b"X-A: b"),
    "two hosts": _get(b"GET / HTTP/1.1", b"Host: a", b"Host: b"),
    "fragment": _get(b"GET /livez#/v1 HTTP/1.1"),
    "space in the target": _get(b"GET /a b HTTP/1.1"),
    "byte beyond ASCII in the target": _get(b"GET /\xff HTTP/1.1"),
    "absolute target without a path": _get(b"GET http://x HTTP/1.1"),
    "tunnel": _get(b"CONNECT x:443 HTTP/1.1"),
    # other protocols
    "HTTP/1.2": _get(b"GET / HTTP/1.2"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "lower-case version": _get(b"GET / http/1.1"),
    "space after the version": _get(b"GET / HTTP/1.1 "),
    "tabs": _get(b"GET\t/ HTTP/1.1"),
    "lower-case method": _get(b"get / HTTP/1.1"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32),
    "upgrade with a body": _head(b"Connection: upgrade", b"Upgrade: h2c", b"Content-Length: 2"),
}
"""Answered 400, once, and nothing behind them is read."""

READ: Final = {
    "usual": _head(b"Content-Length: 2"),
    "spaces around a length": _head(b"Content-Length: \t 2 \t"),
    "many leading zeros": _head(b"Content-Length: 0000000000002"),
    "coding in any case": _head(b"TRANSFER-encoding: cHunKed", body=b"2\r\nab\r\n" + _END),
    "extension": _CHUNKED + b"2;a=b\r\nab\r\n" + _END,
    "quoted extension": _CHUNKED + b'2;a="b;c"\r\nab\r\n' + _END,
    "size with zeros": _CHUNKED + b"0" * 40 + b"2\r\nab\r\n" + _END,
    "trailer": _CHUNKED + b"2\r\nab\r\n0\r\nX-A: b\r\n\r\n",
    "many tiny chunks": _CHUNKED + b"1\r\na\r\n" * 2 + _END,
    "empty lines before": b"\r\n\r\n" + _head(b"Content-Length: 2"),
    "absolute target": _get(b"GET http://couponsvc/livez HTTP/1.1"),
    "GET with a body": _get(b"GET /livez HTTP/1.1", b"Host: a", b"Content-Length: 2") + b"ab",
    "asterisk": _get(b"OPTIONS * HTTP/1.1"),
}
"""Answered one way or another, and so is the request behind them, on the same connection."""
