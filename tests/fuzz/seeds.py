"""Where a fuzzer begins: a few inputs per target that reach its depths."""

from typing import Final

from tests.fuzz.signed import SIGNED
from tests.unit.grab_request import BODY

_HEAD: Final = b"POST /v1/drops/wed-1/grabs HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n"
_KEY: Final = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAJrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=
-----END PUBLIC KEY-----"""
_PROGRAM: Final = b"""program: {id: qingdao-2022, name: x, region: '370200'}
templates:
  - {id: dining-20, name: y, face_value_fen: 2000, min_spend_fen: 6000, valid_for_hours: 48}
drops:
  - {id: wed-1, template: dining-20, quantity: 8_000, per_person_limit: 1, partners: [bank-a],
     opens_at: 2026-10-01T10:00:00+08:00, closes_at: 2026-10-01T20:30:00+08:00}
"""

SEEDS: Final[dict[str, tuple[bytes, ...]]] = {
    "grab_body": (
        BODY,
        b'{"person_token":"p","out_request_no":"n","channel":"app","region":"370200"}',
        b'{"person_token":"p","out_request_no":"n","channel":null,"region":null}',
        b'{"person_token":"p\\"","out_request_no":"n","channel":"\\u0061"}',
        b'{"person_token":"p","person\\u005ftoken":"q","out_request_no":"n"}',
    ),
    "express_head": (
        _HEAD + b"\r\n{}",
        _HEAD + b"Connection: keep-alive\r\nX-A: b c\r\n\r\n{}",
        _HEAD + b"Transfer-Encoding: chunked\r\n\r\n{}",
        _HEAD + b"content-length: 2\r\nX-A:b\r\n c\r\n\r\n{}",
    ),
    "signature_fields": (
        b'sig=("@method" "@path");created=1790820000;keyid="bank-a-1";alg="hmac-sha256";nonce="a";tag="b"',
        b"sig=:AAAA:, b=?1, c=-1.50;d, e=to/k:en*;f=1",
        b'a=("x";sf "y");q="\\"\\\\",b',
    ),
    "digest": (
        b"sha-256=:RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o=:\n{}",
        b"sha-512=:AA==:, sha-256=:AA==:\n",
    ),
    "signature": tuple(SIGNED),
    "public_key": (
        _KEY.encode(),
        b"JrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=",
        b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----",
    ),
    "webhook_url": (
        b"https://hooks.example.com/a?b=c%20d",
        b"https://93.184.215.14:8443/",
        b"https://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]:443/a",
        b"https://user@0x7f.1/..;/\\#",
        b"https://127.1/",
    ),
    "program_file": (_PROGRAM, b"program: &a {id: *a}\n--- x\n? [y]\n: !!python/object:os.system z\n"),
    "voucher_name": (b"vch_7_17", b"vch_2147483647_1", b"vch_0_" + b"1" * 5_000),
    "query": (b"after=7&limit=500", b"a=%20b#c"),
}
