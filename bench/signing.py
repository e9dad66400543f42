"""What a signature costs: `python bench/signing.py` prints microseconds per operation."""

import time
import timeit
from collections.abc import Callable

from couponsvc.support.signing import Ed25519Key, Ed25519SigningKey, HmacKey, VerifyingKey, sign, verify

BODY = b'{"person_token":"p-8f3a5c0d11e24b77","out_request_no":"20261001-000017","channel":"app"}'
PATH = b"/v1/drops/qingdao-2022-w31-wed-dining-20/grabs"
AROUND = [
    (b"host", b"127.0.0.1:8000"),
    (b"user-agent", b"couponsvc-bench/1"),
    (b"accept", b"*/*"),
    (b"content-type", b"application/json"),
    (b"content-length", b"88"),
]
ROUNDS = 7


def report(name: str, call: Callable[[], object], count: int) -> None:
    """Print the best of several rounds."""
    best_s = min(timeit.repeat(call, number=count, repeat=ROUNDS)) / count
    print(f"{name:<44} {best_s * 1e6:8.2f} µs")


def main() -> None:
    """Measure signing and verifying a grab with both algorithms."""
    now_s = int(time.time())
    hmac = HmacKey("bank-a-1", bytes(range(32)))
    private = Ed25519SigningKey("bank-a-2", bytes(range(32)))
    public = Ed25519Key("bank-a-2", private.public_key)
    keys: dict[str, VerifyingKey] = {hmac.key_id: hmac, public.key_id: public}
    for signer, count in ((hmac, 20_000), (private, 1_000)):
        same = AROUND + sign(signer, b"POST", PATH, b"", BODY, created_s=now_s)
        fresh = iter(
            [
                AROUND + sign(signer, b"POST", PATH, b"", BODY, created_s=now_s, nonce=f"n{number}")
                for number in range(count * ROUNDS)
            ]
        )
        name = signer.algorithm
        report(f"{name} sign", lambda s=signer: sign(s, b"POST", PATH, b"", BODY, created_s=now_s), count)  # type: ignore[misc]
        report(
            f"{name} verify, same second",
            lambda h=same: verify("POST", PATH, b"", h, BODY, keys.get, now_s),  # type: ignore[misc]
            count,
        )
        report(
            f"{name} verify, a nonce each",
            lambda f=fresh: verify("POST", PATH, b"", next(f), BODY, keys.get, now_s),  # type: ignore[misc]
            count,
        )


if __name__ == "__main__":
    main()
