"""Who calls: signatures and tokens against credentials in a real Postgres, through time and outages."""

import asyncio
import base64
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from couponsvc.api import auth
from couponsvc.api.auth import Authenticator, KeyNotCached, Principal, ScopeMissing, Unauthenticated
from couponsvc.programs import admission, development_credentials
from couponsvc.programs.admission import CredentialRequest, NewCredential
from couponsvc.support.sealing import MasterKey
from couponsvc.support.signing import Ed25519SigningKey, HmacKey, SigningKey, sign
from tests.servers import PostgresServer

Pool = asyncpg.Pool
MASTER = MasterKey(bytes(range(32)))
PATH = b"/v1/drops/d-1/grabs"
BODY = b'{"person_token":"canary-person","out_request_no":"canary-number"}'
PRIVATE = bytes(range(32, 64))
SCOPES = ("grab", "read", "redeem", "operate", "audit")


class Clock:
    """Unix time that a test moves."""

    def __init__(self) -> None:
        self.now_s = datetime.now(UTC).timestamp()

    def __call__(self) -> float:
        return self.now_s


class CountingAuthenticator(Authenticator):
    """Counts how often Postgres is asked."""

    readings_count = 0

    async def load(self) -> None:
        self.readings_count += 1
        await super().load()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def authenticator(pool: Pool, clock: Clock) -> CountingAuthenticator:
    for partner_id in ("bank-a", "bank-b"):
        await admission.create_partner(pool, "test", partner_id, partner_id)
    made = CountingAuthenticator(pool, MASTER, clock=clock)
    await made.load()
    made.readings_count = 0
    return made


async def make(pool: Pool, kind: str = "hmac-sha256", **wanted: Any) -> NewCredential:
    request = CredentialRequest(**{"holder": "partner", "kind": kind, "partner_id": "bank-a"} | wanted)
    return await admission.create_key(pool, MASTER, "test", request)


def key_of(made: NewCredential) -> SigningKey:
    if made.kind == "ed25519":
        return Ed25519SigningKey(made.key_id, PRIVATE)
    return HmacKey(made.key_id, base64.b64decode(made.secret or ""))


def signed(key: SigningKey, clock: Clock, body: bytes = BODY) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"h"), *sign(key, b"POST", PATH, b"", body, created_s=int(clock.now_s))]


def bearer(token: str | None) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"h"), (b"authorization", f"Bearer {token}".encode())]


def check(to_ask: Authenticator, headers: list[tuple[bytes, bytes]], body: bytes = BODY) -> Principal:
    return to_ask.check("POST", PATH, b"", headers, body)


async def ask(to_ask: Authenticator, headers: list[tuple[bytes, bytes]], body: bytes = BODY) -> Principal:
    return await to_ask.authenticate("POST", PATH, b"", headers, body)


@pytest.mark.parametrize("kind", ["hmac-sha256", "ed25519", "bearer"])
async def test_a_new_key_works_at_once(
    pool: Pool, authenticator: CountingAuthenticator, clock: Clock, kind: str
) -> None:
    public = base64.b64encode(Ed25519SigningKey("", PRIVATE).public_key).decode()
    made = await make(pool, kind, public_key=public if kind == "ed25519" else None)
    headers = bearer(made.token) if kind == "bearer" else signed(key_of(made), clock)
    with pytest.raises(KeyNotCached):
        check(authenticator, headers)
    principal = await ask(authenticator, headers)
    assert principal == check(authenticator, headers), "from now on without Postgres"
    assert authenticator.readings_count == 1
    assert (principal.key_id, principal.holder, principal.partner_id) == (made.key_id, "partner", "bank-a")
    assert principal.scopes == {"grab", "read", "redeem"}


async def test_two_partners_are_kept_apart(
    pool: Pool, authenticator: CountingAuthenticator, clock: Clock
) -> None:
    a, b = await make(pool), await make(pool, partner_id="bank-b")
    first, second = (
        await ask(authenticator, signed(key_of(a), clock)),
        await ask(authenticator, signed(key_of(b), clock)),
    )
    assert (first.partner_id, second.partner_id) == ("bank-a", "bank-b")
    assert first.partner_no != second.partner_no
    posing = HmacKey(b.key_id, base64.b64decode(a.secret or ""))
    with pytest.raises(Unauthenticated, match="does not verify"):
        await ask(authenticator, signed(posing, clock))


async def test_scopes_are_those_of_the_holder(pool: Pool, authenticator: CountingAuthenticator) -> None:
    made = await development_credentials.create_development_credentials(pool, MASTER)
    assert made is not None
    may = {
        "operator": {"operate", "read", "audit"},
        "auditor": {"audit", "read"},
        "partner": {"grab", "read", "redeem"},
    }
    for holder, parts in made.items():
        principal = await ask(authenticator, bearer(parts["token"]))
        assert (principal.holder, principal.partner_no is None) == (holder, holder != "partner")
        for scope in SCOPES:
            if scope in may[holder]:
                principal.require(scope)
            else:
                with pytest.raises(ScopeMissing, match=scope):
                    principal.require(scope)


async def test_a_revoked_key_stops_with_the_next_reading(
    pool: Pool, authenticator: CountingAuthenticator, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In time: see the next test."""
    monkeypatch.setattr(auth, "REFRESH_EVERY_S", 0.4)
    made, token = await make(pool), await make(pool, "bearer")
    stop = asyncio.Event()
    running = asyncio.create_task(authenticator.run(stop))
    await ask(authenticator, signed(key_of(made), clock))
    await ask(authenticator, bearer(token.token))
    for key_id in (made.key_id, token.key_id):
        await admission.revoke_key(pool, "test", key_id)
    deadline = asyncio.get_running_loop().time() + auth.REFRESH_EVERY_S + auth.READ_TIMEOUT_S
    for headers in (signed(key_of(made), clock), bearer(token.token)):
        while True:
            try:
                check(authenticator, headers)
            except Unauthenticated:
                break
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.02)
        with pytest.raises(Unauthenticated):
            await ask(authenticator, headers)
    stop.set()
    await running


async def test_refreshing_and_reading_fit_into_the_promise_of_five_seconds() -> None:
    assert auth.REFRESH_EVERY_S + auth.READ_TIMEOUT_S < 5


async def test_an_expired_key_is_told_so_but_only_to_its_holder(
    pool: Pool, authenticator: CountingAuthenticator, clock: Clock
) -> None:
    expires_at = datetime.fromtimestamp(clock.now_s, UTC) + timedelta(hours=1)
    made = await make(pool, expires_at=expires_at)
    assert await ask(authenticator, signed(key_of(made), clock))
    clock.now_s = expires_at.timestamp() - 0.5
    assert check(authenticator, signed(key_of(made), clock))
    clock.now_s = expires_at.timestamp()
    with pytest.raises(Unauthenticated, match=f"{made.key_id} has expired"):
        check(authenticator, signed(key_of(made), clock))
    with pytest.raises(Unauthenticated, match="does not verify"):
        check(authenticator, signed(HmacKey(made.key_id, bytes(32)), clock))


async def test_both_keys_work_while_a_rotation_s_grace_lasts(
    pool: Pool, authenticator: CountingAuthenticator, clock: Clock
) -> None:
    old = await make(pool)
    new, ends_at = await admission.rotate_key(pool, MASTER, "test", old.key_id, grace=timedelta(minutes=10))
    await authenticator.load()
    assert check(authenticator, signed(key_of(old), clock)).partner_id == "bank-a"
    assert check(authenticator, signed(key_of(new), clock)).partner_id == "bank-a"
    clock.now_s = ends_at.timestamp() + 1
    assert check(authenticator, signed(key_of(new), clock)).partner_id == "bank-a"
    with pytest.raises(Unauthenticated, match="expired"):
        check(authenticator, signed(key_of(old), clock))


async def test_a_replay_inside_the_window_is_accepted_and_outside_it_refused(
    pool: Pool, authenticator: CountingAuthenticator, clock: Clock
) -> None:
    made = await make(pool)
    headers = signed(key_of(made), clock)
    start_s = int(clock.now_s)
    await ask(authenticator, headers)
    for age_s in (299, 300, -299, -300):
        clock.now_s = start_s + age_s
        assert check(authenticator, headers)
    for age_s in (301, -301):
        clock.now_s = start_s + age_s
        with pytest.raises(Unauthenticated, match=r"the window is 300 s"):
            check(authenticator, headers)


async def test_a_signature_counts_more_than_a_token(
    pool: Pool, authenticator: CountingAuthenticator, clock: Clock
) -> None:
    signing, token = await make(pool), await make(pool, "bearer", partner_id="bank-b")
    await authenticator.load()
    both = signed(key_of(signing), clock) + bearer(token.token)[1:]
    assert check(authenticator, both).partner_id == "bank-a"
    spoiled = signed(HmacKey(signing.key_id, bytes(32)), clock) + bearer(token.token)[1:]
    with pytest.raises(Unauthenticated, match="does not verify"):
        check(authenticator, spoiled)


@pytest.mark.parametrize(
    "value", [b"", b"Bearer", b"Bearer ", b"Basic YTpi", b"couponsvc_x", b"Bearer " + b"x" * 513, b"\xff\xfe"]
)
async def test_a_malformed_authorization_is_refused_at_once(
    authenticator: CountingAuthenticator, value: bytes
) -> None:
    with pytest.raises(Unauthenticated, match=r"Bearer <token>") as refused:
        check(authenticator, [(b"authorization", value)])
    assert not isinstance(refused.value, KeyNotCached)
    with pytest.raises(Unauthenticated, match=r"Sign the request"):
        check(authenticator, [])


async def test_the_scheme_s_name_has_any_case(pool: Pool, authenticator: CountingAuthenticator) -> None:
    made = await make(pool, "bearer")
    await authenticator.load()
    for prefix in ("bearer", "BEARER", "Bearer "):
        assert check(authenticator, [(b"authorization", f"{prefix} {made.token}".encode())])


async def test_strangers_cannot_flood_postgres(authenticator: CountingAuthenticator, clock: Clock) -> None:
    async def stranger(number: int) -> None:
        headers = (
            signed(HmacKey(f"nobody-{number}", bytes(32)), clock) if number % 2 else bearer(f"guess-{number}")
        )
        with pytest.raises(Unauthenticated, match=r"does not verify|not known"):
            await ask(authenticator, headers)

    began = asyncio.get_running_loop().time()
    for _ in range(3):
        await asyncio.gather(*(stranger(number) for number in range(300)))
    for number in range(1_000, 1_005):
        await stranger(number)
    lasted_s = asyncio.get_running_loop().time() - began
    assert authenticator.readings_count <= 2 + lasted_s / auth.READ_SPACING_S


async def test_a_known_stranger_is_refused_without_waiting(
    authenticator: CountingAuthenticator, clock: Clock
) -> None:
    headers = signed(HmacKey("nobody", bytes(32)), clock)
    with pytest.raises(Unauthenticated):
        await ask(authenticator, headers)
    with pytest.raises(Unauthenticated) as refused:
        check(authenticator, headers)
    assert not isinstance(refused.value, KeyNotCached)


async def test_a_stranger_s_key_that_is_created_later_works(
    pool: Pool, authenticator: CountingAuthenticator
) -> None:
    with pytest.raises(Unauthenticated):
        await ask(authenticator, bearer("couponsvc_early"))
    made = await make(pool, "bearer")
    await pool.execute(
        "UPDATE credentials SET token_hash = $1 WHERE key_id = $2",
        MASTER.token_hash("couponsvc_early"),
        made.key_id,
    )
    await authenticator.load()
    assert check(authenticator, bearer("couponsvc_early")).key_id == made.key_id


async def test_while_postgres_is_away_known_keys_work(
    pool: Pool,
    database: str,
    postgres_server: PostgresServer,
    authenticator: CountingAuthenticator,
    clock: Clock,
) -> None:
    made = await make(pool)
    headers = signed(key_of(made), clock)
    await ask(authenticator, headers)
    name = database.rsplit("/", 1)[1].partition("?")[0]
    other = await asyncpg.connect(postgres_server.dsn)
    try:
        await other.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        with capture_logs() as logs:
            for number in range(3):
                with pytest.raises(Unauthenticated):
                    await ask(authenticator, signed(HmacKey(f"nobody-{number}", bytes(32)), clock))
            assert check(authenticator, headers).key_id == made.key_id
        assert [entry["log_level"] for entry in logs] == ["warning"], "told once, not per request"
        await other.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    finally:
        await other.close()
    newer = await make(pool)
    assert (await ask(authenticator, signed(key_of(newer), clock))).key_id == newer.key_id


async def test_a_secret_of_another_master_key_spoils_only_itself(
    pool: Pool, authenticator: CountingAuthenticator, clock: Clock
) -> None:
    request = CredentialRequest("partner", "hmac-sha256", "bank-a")
    foreign = await admission.create_key(pool, MasterKey(bytes(32)), "test", request)
    good = await make(pool)
    with capture_logs() as logs:
        await authenticator.load()
        await authenticator.load()  # told once
    assert [(entry["log_level"], entry["key_id"]) for entry in logs] == [("error", foreign.key_id)]
    assert check(authenticator, signed(key_of(good), clock))
    with pytest.raises(Unauthenticated):
        await ask(authenticator, signed(key_of(foreign), clock))


async def test_the_table_is_not_built_anew_for_rows_that_stayed(
    pool: Pool, authenticator: CountingAuthenticator, clock: Clock
) -> None:
    made = await make(pool)
    first = await ask(authenticator, signed(key_of(made), clock))
    await authenticator.load()
    assert check(authenticator, signed(key_of(made), clock)) is first
    await pool.execute("UPDATE credentials SET scopes = '{read}' WHERE key_id = $1", made.key_id)
    await authenticator.load()
    assert check(authenticator, signed(key_of(made), clock)).scopes == {"read"}


async def test_a_cancelled_request_does_not_spoil_the_reading_of_others(
    pool: Pool, authenticator: CountingAuthenticator
) -> None:
    made = await make(pool, "bearer")
    impatient = asyncio.create_task(ask(authenticator, bearer(made.token)))
    patient = asyncio.create_task(ask(authenticator, bearer(made.token)))
    await asyncio.sleep(0)
    impatient.cancel()
    assert (await patient).key_id == made.key_id
    with pytest.raises(asyncio.CancelledError):
        await impatient


async def test_no_secret_is_in_a_refusal_a_repr_or_a_log(
    pool: Pool,
    authenticator: CountingAuthenticator,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    made, token = await make(pool), await make(pool, "bearer")
    secret = base64.b64decode(made.secret or "")
    told = []
    with capture_logs() as logs:
        principal = await ask(authenticator, signed(key_of(made), clock))
        for headers, body in (
            (signed(key_of(made), clock), b"{}"),
            (signed(HmacKey("nobody", secret), clock), BODY),
            (bearer(f"{token.token}x"), BODY),
            (bearer("canary-token"), BODY),
            ([(b"authorization", b"Basic canary-token")], BODY),
        ):
            with pytest.raises(Unauthenticated) as refused:
                await ask(authenticator, headers, body)
            told += [str(refused.value), repr(refused.value)]
    told += [repr(principal), repr(authenticator), repr(MASTER), repr(key_of(made)), repr(logs), caplog.text]
    told += list(capsys.readouterr())
    for canary in ("canary", made.secret or "", secret.hex(), repr(secret)[2:-1], token.token or ""):
        assert not any(canary in text for text in told), canary
