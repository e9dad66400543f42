"""Who calls: every live credential in memory, checked without a look at Postgres.

The table is a snapshot that is read again every two seconds, so a revoked key stops
within five seconds, and a new key works at once: an unknown `keyid` or token causes one
reading (shared by all who wait, and spaced, so that strangers cannot flood Postgres).
While Postgres is away the last snapshot stays in force; only revocations wait.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Final

import asyncpg
import structlog

from couponsvc.api.credential_table import Credential, CredentialTable
from couponsvc.api.principal import KeyNotCached, Principal, ScopeMissing, Unauthenticated
from couponsvc.programs.live_credentials import read_live_credentials
from couponsvc.support.sealing import MasterKey
from couponsvc.support.signing import (
    Request,
    SignatureRefused,
    UnknownSigner,
    combine,
    verify_request,
)

__all__ = ["Authenticator", "KeyNotCached", "Principal", "ScopeMissing", "Unauthenticated"]

log = structlog.get_logger("auth")

REFRESH_EVERY_S: Final = 2.0
"""With `READ_TIMEOUT_S` below the five seconds within which a revoked key must stop."""
READ_TIMEOUT_S: Final = 2.0
READ_SPACING_S: Final = 0.2
"""Least time between two readings that unknown keys cause: five a second at most."""
UNKNOWN_FOR_S: Final = 2.0
"""An id that was not found is refused at once for so long; the next snapshot would have it."""
UNKNOWN_MAX_COUNT: Final = 4_096
WAITING_MAX_COUNT: Final = 1_000
"""Requests that may wait for a reading; beyond it an unknown key is refused at once."""
TOKENS_MAX_COUNT: Final = 1_024
"""Tokens whose hash is remembered; only tokens that were good."""
TOKEN_MAX_BYTES: Final = 512
_SCHEMES: Final = {"http": b"http", "https": b"https"}

_POSTGRES_AWAY: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


class Authenticator:
    """Checks signatures and bearer tokens against the table.

    Where a request has both a signature and an `Authorization` header, the signature counts
    and the token is not looked at: the stronger proof was meant, and a signature that does
    not verify must not be excused by a token.

    Args:
        pool: Postgres.
        master_key: Opens sealed secrets and hashes tokens.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        pool: "asyncpg.Pool[asyncpg.Record]",
        master_key: MasterKey,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pool: Final = pool
        self._master_key: Final = master_key
        self._clock: Final = clock
        self._table = CredentialTable((), master_key, None)
        self.limited: Mapping[bytes, Principal] = {}
        """Partners whose rate is limited, by the `keyid` of each signing key."""
        self._read_at = self._tried_at = -inf
        self._reading: asyncio.Task[bool] | None = None
        self._reachable = True
        self._waiting_count = 0
        self._unknown: Final[dict[str, float]] = {}
        self._token_hashes: Final[dict[bytes, bytes]] = {}

    # --- checking, without waiting ------------------------------------------------------------
    def check(  # noqa: PLR0917 - a request has so many parts
        self,
        method: str,
        raw_path: bytes,
        query: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        scheme: str = "https",
    ) -> Principal:
        """Tell who sent a request; arguments are those of the ASGI scope.

        Raises:
            KeyNotCached: the key or token may be newer than the table.
            Unauthenticated: the caller is not proven.
        """
        return self.check_request(
            Request(method, raw_path, query, combine(headers), body, _SCHEMES.get(scheme, b""))
        )

    def check_request(self, request: Request) -> Principal:
        """As `check`, where the parts are put together already; `request.fields` may be added to.

        Raises:
            KeyNotCached, Unauthenticated: as `check`.
        """
        fields = request.fields
        now_s = self._clock()
        if b"signature-input" in fields or b"signature" in fields:
            try:
                key_id = verify_request(request, self._table.keys.get, now_s)
            except UnknownSigner as refusal:
                raise self._not_found(refusal.key_id, refusal.reason) from None
            except SignatureRefused as refusal:
                raise Unauthenticated(refusal.reason) from None
            credential = self._table.credentials[key_id]
        elif b"authorization" in fields:
            credential = self._bearer(fields[b"authorization"])
        else:
            raise Unauthenticated("Sign the request (RFC 9421) or send Authorization: Bearer <token>.")
        if credential.expires_s <= now_s:
            raise Unauthenticated(f"The key {credential.principal.key_id} has expired: use its successor.")
        return credential.principal

    def _bearer(self, authorization: bytes) -> Credential:
        kind, _, token = authorization.strip(b" \t").partition(b" ")
        token = token.strip(b" ")
        if kind.lower() != b"bearer" or not 0 < len(token) <= TOKEN_MAX_BYTES:
            raise Unauthenticated("Authorization must be: Bearer <token>.")
        remembered = self._token_hashes.get(token)
        # Looked up by keyed hash: the time taken tells nothing about tokens that exist.
        digest = remembered or self._master_key.token_hash(token.decode("latin-1"))
        credential = self._table.by_token_hash.get(digest)
        if credential is None:
            self._token_hashes.pop(token, None)
            raise self._not_found(f"token {digest.hex()}", "The token is not known or no longer live.")
        if remembered is None:
            if len(self._token_hashes) >= TOKENS_MAX_COUNT:
                self._token_hashes.clear()
            self._token_hashes[token] = digest
        return credential

    def _not_found(self, key_id: str, detail: str) -> Unauthenticated:
        until_s = self._unknown.get(key_id)
        if until_s is not None and until_s > time.monotonic():
            return Unauthenticated(detail)
        return KeyNotCached(detail, key_id)

    def is_live(self, key_id: str) -> bool:
        """Whether a key may be used now, as far as the table knows: for answers that take long."""
        credential = self._table.credentials.get(key_id)
        return credential is not None and credential.expires_s > self._clock()

    # --- keeping the table fresh --------------------------------------------------------------
    async def authenticate(  # noqa: PLR0917 - as `check`
        self,
        method: str,
        raw_path: bytes,
        query: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        scheme: str = "https",
    ) -> Principal:
        """As `check`, and where the key may be new, once more after a reading.

        Raises:
            Unauthenticated: the caller is not proven.
        """
        try:
            return self.check(method, raw_path, query, headers, body, scheme)
        except KeyNotCached as unknown:
            await self.refresh_key(unknown.key_id)
            return self.check(method, raw_path, query, headers, body, scheme)

    async def load(self) -> None:
        """Read the table now.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError: Postgres cannot be asked.
        """
        read_at = self._tried_at = time.monotonic()
        async with asyncio.timeout(READ_TIMEOUT_S):
            rows = await read_live_credentials(self._pool)
        if read_at >= self._read_at:  # a slow reading must not undo a later one
            self._table = CredentialTable(rows, self._master_key, self._table)
            self.limited = self._table.limited
            self._read_at = read_at

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the table fresh until `stop`. Postgres being away is survived and told once."""
        try:
            while not stop.is_set():
                await self._load_or_keep()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), REFRESH_EVERY_S)
        finally:
            if self._reading is not None:
                self._reading.cancel()

    async def refresh_key(self, key_id: str) -> None:
        """Make sure that the table is newer than this call; then `check` says for good.

        One reading serves all who wait, and readings are spaced. An id that is still not
        there is remembered as unknown for a while.
        """
        if self._waiting_count < WAITING_MAX_COUNT:
            self._waiting_count += 1
            try:
                await self._read_after(time.monotonic())
            finally:
                self._waiting_count -= 1
        if key_id in self._table.credentials:
            self._unknown.pop(key_id, None)
            return
        if len(self._unknown) >= UNKNOWN_MAX_COUNT:
            del self._unknown[next(iter(self._unknown))]
        self._unknown[key_id] = time.monotonic() + UNKNOWN_FOR_S

    async def _read_after(self, asked_at: float) -> None:
        """Wait for a reading that began after `asked_at`; its failure ends the wait too."""
        while self._read_at < asked_at:
            if self._reading is None:
                self._reading = asyncio.create_task(self._read_spaced(), name="keys on demand")
            reading = self._reading
            if not await asyncio.shield(reading):
                return

    async def _read_spaced(self) -> bool:
        try:
            wait_s = self._tried_at + READ_SPACING_S - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            return await self._load_or_keep()
        finally:
            self._reading = None

    async def _load_or_keep(self) -> bool:
        try:
            await self.load()
        except _POSTGRES_AWAY as error:
            if self._reachable:
                log.warning(
                    "credentials not refreshed; the last known stay in force", error=type(error).__name__
                )
            self._reachable = False
            return False
        if not self._reachable:
            log.info("credentials are refreshed again")
        self._reachable = True
        return True
