"""A signed grab that tests alter before they have it verified."""

from base64 import b64encode
from dataclasses import dataclass, field, replace

from couponsvc.support.signing import (
    Ed25519Key,
    Ed25519SigningKey,
    HmacKey,
    SigningKey,
    VerifyingKey,
    sign,
    verify,
)

NOW_S = 1_790_820_000
SECRET = bytes(range(32))
HMAC = HmacKey("bank-a-1", SECRET)
OTHER_HMAC = HmacKey("bank-b-1", bytes(range(1, 33)))
PRIVATE = Ed25519SigningKey("bank-a-2", bytes(range(32, 64)))
PUBLIC = Ed25519Key("bank-a-2", PRIVATE.public_key)
KEYS: dict[str, VerifyingKey] = {key.key_id: key for key in (HMAC, OTHER_HMAC, PUBLIC)}

BODY = b'{"person_token":"p-8f3a5c0d","out_request_no":"20261001-000017"}'
AROUND = ((b"host", b"127.0.0.1:8000"), (b"content-type", b"application/json"))


@dataclass(frozen=True)
class GrabRequest:
    """A request as the service receives it."""

    method: bytes = b"POST"
    raw_path: bytes = b"/v1/drops/qingdao-2022-w31-wed-dining-20/grabs"
    query: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=lambda: list(AROUND))
    body: bytes = BODY
    scheme: bytes = b"https"

    def signed(self, key: SigningKey = HMAC, *, created_s: int = NOW_S) -> "GrabRequest":
        added = sign(key, self.method, self.raw_path, self.query, self.body, created_s=created_s)
        return replace(self, headers=self.headers + added)

    def signed_as(self, value: str, *, key: SigningKey = HMAC, label: str = "sig") -> "GrabRequest":
        """Sign what `value` (list and parameters) says, whatever it is; for simple components."""
        fields = dict(self.headers)
        fields |= {b"@method": self.method, b"@path": self.raw_path, b"@query": b"?" + self.query}
        names = [name.encode() for name in value[: value.index(")")].strip("(").replace('"', "").split()]
        lines = [b'"%b": %b\n' % (name, fields[name]) for name in names]
        signature = key.sign(b"".join(lines) + b'"@signature-params": ' + value.encode())
        return self.with_signature(f"{label}={value}", label, signature)

    def with_signature(self, signature_input: str, label: str, signature: bytes) -> "GrabRequest":
        added = [
            (b"signature-input", signature_input.encode()),
            (b"signature", label.encode() + b"=:" + b64encode(signature) + b":"),
        ]
        return replace(self, headers=self.headers + added)

    def with_header(self, name: bytes, value: bytes) -> "GrabRequest":
        kept = [(n, v) for n, v in self.headers if n != name]
        return replace(self, headers=[*kept, (name, value)])

    def header(self, name: bytes) -> bytes:
        return dict(self.headers)[name]

    def verify(self, now_s: float = NOW_S, keys: dict[str, VerifyingKey] | None = None) -> str:
        known = KEYS if keys is None else keys
        return verify(
            self.method, self.raw_path, self.query, self.headers, self.body, known.get, now_s, self.scheme
        )
