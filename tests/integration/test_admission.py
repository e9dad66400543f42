"""Admission on a real Postgres: what is kept, what is shown once, and who may have what."""

import asyncio
import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typer.testing import CliRunner

from couponsvc.admission_cli import key_app, partner_app
from couponsvc.processes.running import ProcessFailed
from couponsvc.programs import admission, development_credentials, live_credentials
from couponsvc.programs.admission import CredentialRequest, Holder, Kind
from couponsvc.programs.public_key import BadPublicKey, read_public_key
from couponsvc.support.sealing import CannotOpen, MasterKey
from couponsvc.support.signing import Ed25519Key, HmacKey
from tests.conftest import MASTER_KEY as MASTER_KEY_TEXT

Pool = asyncpg.Pool
MASTER = MasterKey.from_base64(MASTER_KEY_TEXT)
PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
RAW = PRIVATE.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
PEM = PRIVATE.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


async def make(pool: Pool, kind: Kind = "hmac-sha256", **wanted: Any) -> admission.NewCredential:
    request = CredentialRequest(**{"holder": "partner", "kind": kind, "partner_id": "bank-a"} | wanted)
    return await admission.create_key(pool, MASTER, "test", request)


@pytest.fixture
async def admitted(pool: Pool) -> Pool:
    await admission.create_partner(pool, "test", "bank-a", "Bank A")
    return pool


async def text_of_everything(pool: Pool) -> str:
    rows = [
        row[0]
        for table in ("partners", "credentials", "operations")
        for row in await pool.fetch(f"SELECT t::text FROM {table} t")
    ]
    return "\n".join(rows)


async def test_every_query_prepares(pool: Pool) -> None:
    async with pool.acquire() as connection:
        for query in admission.SQL.all():
            await connection.prepare(query.sql)


async def test_a_partner_is_admitted_once(admitted: Pool) -> None:
    with pytest.raises(admission.Conflict, match="bank-a already"):
        await admission.create_partner(admitted, "test", "bank-a", "again")
    (partner,) = await admission.list_partners(admitted)
    assert (partner["partner_id"], partner["name"], partner["live_key_count"]) == ("bank-a", "Bank A", 0)


async def test_a_partner_needs_a_slug(pool: Pool) -> None:
    for partner_id in ("", "a", "-a", "Bank", "bank_a", "b" * 64, "bank a", "银行", "bank-a\n"):
        with pytest.raises(admission.InvalidCredential, match="no identifier"):
            await admission.create_partner(pool, "test", partner_id, "x")


async def test_an_hmac_secret_is_kept_sealed_and_for_its_key_only(admitted: Pool) -> None:
    one, two = await make(admitted), await make(admitted)
    assert one.secret is not None
    secret = base64.b64decode(one.secret, validate=True)
    assert len(secret) == 32
    row = {row["key_id"]: row for row in await live_credentials.read_live_credentials(admitted)}[one.key_id]
    key = live_credentials.verifying_key(row, MASTER)
    assert isinstance(key, HmacKey)
    assert key.verifies(b"base", HmacKey("", secret).sign(b"base"))
    with pytest.raises(CannotOpen):
        MASTER.open(row["sealed_secret"], live_credentials.SECRET_PURPOSE, two.key_id)
    stored = await text_of_everything(admitted)
    assert one.secret not in stored
    assert secret.hex() not in stored


async def test_of_a_token_only_a_keyed_hash_is_kept(admitted: Pool) -> None:
    made = await make(admitted, "bearer")
    assert made.token is not None
    assert made.token.startswith("couponsvc_")
    stored = await text_of_everything(admitted)
    assert made.token not in stored
    assert made.token.encode().hex() not in stored
    assert MASTER.token_hash(made.token).hex() in stored


async def test_nothing_secret_is_in_a_repr(admitted: Pool) -> None:
    for kind in ("hmac-sha256", "bearer"):
        made = await make(admitted, kind)
        assert (made.secret or made.token or "") not in repr(made)


@pytest.mark.parametrize(
    "text", [base64.b64encode(RAW).decode(), PEM, f"\n{PEM}\n"], ids=["raw", "pem", "spaced"]
)
async def test_an_ed25519_partner_gives_its_public_key(admitted: Pool, text: str) -> None:
    made = await make(admitted, "ed25519", public_key=text)
    assert made.secret is None
    assert made.token is None
    (row,) = await live_credentials.read_live_credentials(admitted)
    key = live_credentials.verifying_key(row, MASTER)
    assert isinstance(key, Ed25519Key)
    assert key.verifies(b"base", PRIVATE.sign(b"base"))


def foreign_pem() -> str:
    public = generate_private_key(SECP256R1()).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.mark.parametrize(
    "text",
    ["", "x", base64.b64encode(RAW[:-1]).decode(), RAW.hex(), "-----BEGIN", foreign_pem(), "密" * 10],
    ids=["empty", "short", "31 bytes", "hexadecimal", "no PEM", "another kind of key", "not ASCII"],
)
def test_what_is_no_ed25519_public_key_is_refused(text: str) -> None:
    with pytest.raises(BadPublicKey):
        read_public_key(text)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"scopes": frozenset({"operate"})}, "grab, read, redeem"),
    ({"scopes": frozenset({"grab", "audit"})}, "grab, read, redeem"),
    ({"scopes": frozenset()}, "grab, read, redeem"),
    ({"holder": "operator", "partner_id": None, "scopes": frozenset({"grab"})}, "audit, operate, read"),
    ({"holder": "auditor", "partner_id": None, "scopes": frozenset({"operate"})}, "audit, read"),
    ({"holder": "operator"}, "names the partner"),
    ({"partner_id": None}, "names the partner"),
    ({"kind": "ed25519"}, "public key"),
    ({"kind": "bearer", "public_key": PEM}, "public key"),
]


async def test_nobody_gets_more_than_the_holder_may_have(admitted: Pool) -> None:
    for wanted, reason in REFUSED:
        with pytest.raises(admission.InvalidCredential, match=reason):
            await make(admitted, **{"kind": "hmac-sha256"} | wanted)
    assert await admission.list_keys(admitted) == []


@pytest.mark.parametrize("holder", ["operator", "auditor"])
async def test_others_than_partners_have_no_partner(pool: Pool, holder: Holder) -> None:
    made = await make(pool, "bearer", holder=holder, partner_id=None)
    assert set(made.scopes) == admission.SCOPES_OF[holder]
    (row,) = await admission.list_keys(pool)
    assert (row["partner_id"], row["live"]) == (None, True)


async def test_an_unknown_partner_gets_no_key(pool: Pool) -> None:
    with pytest.raises(admission.Unknown, match="bank-a"):
        await make(pool)
    with pytest.raises(admission.Unknown, match="bank-a"):
        await admission.list_keys(pool, "bank-a")


async def test_rotation_makes_an_equal_key_and_lets_the_old_one_end(admitted: Pool) -> None:
    old = await make(admitted, scopes=frozenset({"grab"}), label="till 7")
    made, ends_at = await admission.rotate_key(
        admitted, MASTER, "test", old.key_id, grace=timedelta(minutes=5)
    )
    assert (made.kind, made.scopes, made.partner_id) == (old.kind, ("grab",), "bank-a")
    assert made.secret not in (None, old.secret)
    assert timedelta(minutes=4) < ends_at - datetime.now(UTC) < timedelta(minutes=6)
    keys = {row["key_id"]: row for row in await admission.list_keys(admitted, "bank-a")}
    assert keys[old.key_id]["live"]
    assert keys[old.key_id]["expires_at"] == ends_at
    assert (keys[made.key_id]["label"], keys[made.key_id]["expires_at"]) == ("till 7", None)


async def test_rotation_never_prolongs_a_key(admitted: Pool) -> None:
    soon = datetime.now(UTC) + timedelta(minutes=1)
    old = await make(admitted, expires_at=soon)
    _, ends_at = await admission.rotate_key(admitted, MASTER, "test", old.key_id)
    assert ends_at == soon


async def test_rotating_an_ed25519_key_needs_the_new_public_key(admitted: Pool) -> None:
    old = await make(admitted, "ed25519", public_key=PEM)
    with pytest.raises(admission.InvalidCredential, match="public key"):
        await admission.rotate_key(admitted, MASTER, "test", old.key_id)
    made, _ = await admission.rotate_key(admitted, MASTER, "test", old.key_id, public_key=PEM)
    assert made.kind == "ed25519"


async def test_a_revoked_key_is_gone_and_cannot_be_rotated(admitted: Pool) -> None:
    made = await make(admitted)
    assert await admission.revoke_key(admitted, "test", made.key_id)
    assert not await admission.revoke_key(admitted, "test", made.key_id)
    assert await live_credentials.read_live_credentials(admitted) == []
    with pytest.raises(admission.Conflict, match="revoked or expired"):
        await admission.rotate_key(admitted, MASTER, "test", made.key_id)
    for unknown in (
        admission.revoke_key(admitted, "test", "nobody"),
        admission.rotate_key(admitted, MASTER, "test", "nobody"),
    ):
        with pytest.raises(admission.Unknown, match="nobody"):
            await unknown


async def test_development_credentials_are_made_once_however_many_ask(pool: Pool) -> None:
    answers = await asyncio.gather(
        *(development_credentials.create_development_credentials(pool, MASTER) for _ in range(6))
    )
    (made,) = [answer for answer in answers if answer is not None]
    assert {holder: set(parts) for holder, parts in made.items()} == {
        "operator": {"token"},
        "auditor": {"token"},
        "partner": {"partner_id", "key_id", "secret", "token"},
    }
    assert made["partner"]["partner_id"] == "bank-a"
    assert len(await admission.list_keys(pool)) == 4
    assert await development_credentials.create_development_credentials(pool, MASTER) is None


async def test_development_credentials_join_a_partner_that_is_there(admitted: Pool) -> None:
    assert await development_credentials.create_development_credentials(admitted, MASTER) is not None
    assert len(await admission.list_partners(admitted)) == 1


async def test_every_change_is_written_down_without_secrets(admitted: Pool) -> None:
    hmac, bearer = await make(admitted), await make(admitted, "bearer")
    successor, _ = await admission.rotate_key(admitted, MASTER, "test", hmac.key_id)
    await admission.revoke_key(admitted, "test", bearer.key_id)
    rows = await admitted.fetch("SELECT actor, action, subject, detail FROM operations ORDER BY operation_no")
    assert [(row["actor"], row["action"], row["subject"]) for row in rows] == [
        ("test", "partner.create", "bank-a"),
        ("test", "key.create", hmac.key_id),
        ("test", "key.create", bearer.key_id),
        ("test", "key.create", successor.key_id),
        ("test", "key.rotate", hmac.key_id),
        ("test", "key.revoke", bearer.key_id),
    ]
    told = " ".join(row["detail"] for row in rows)
    assert not any(secret in told for secret in (hmac.secret, bearer.token, successor.secret) if secret)
    assert json.loads(rows[1]["detail"])["scopes"] == ["grab", "read", "redeem"]


def test_the_command_line_admits_and_shows_secrets_once(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COUPONSVC_POSTGRES_DSN", database)
    monkeypatch.setenv("COUPONSVC_MASTER_KEY", MASTER_KEY_TEXT)
    runner = CliRunner()

    def run(app: Any, *arguments: str) -> str:
        result = runner.invoke(app, list(arguments))
        if result.exception is not None:
            raise result.exception
        return result.stdout

    assert "admitted bank-b" in run(partner_app, "create", "bank-b", "--title", "Bank B")
    made = json.loads(run(key_app, "create", "--partner", "bank-b", "--scope", "grab", "--json"))
    assert (made["kind"], made["scopes"]) == ("hmac-sha256", ["grab"])
    rotated = run(key_app, "rotate", made["key_id"], "--grace-hours", "1")
    assert "not shown again" in rotated
    assert f"The old key {made['key_id']} ends at" in rotated
    operator = json.loads(run(key_app, "create", "--holder", "operator", "--json"))
    assert f"{operator['key_id']} is revoked" in run(key_app, "revoke", operator["key_id"])
    assert "revoked before" in run(key_app, "revoke", operator["key_id"])
    listed = run(key_app, "list") + run(key_app, "list", "--json") + run(partner_app, "list")
    assert made["key_id"] in listed
    assert made["secret"] not in listed
    assert operator["token"] not in listed
    for arguments, exit_code in (
        (("revoke", "nobody"), 1),
        (("create", "--partner", "nobody"), 1),
        (("create", "--holder", "auditor", "--scope", "operate"), 2),
        (("create", "--partner", "bank-b", "--kind", "ed25519", "--public-key", "x"), 2),
    ):
        with pytest.raises(ProcessFailed) as failed:
            run(key_app, *arguments)
        assert failed.value.exit_code == exit_code, arguments
        assert "\n" not in str(failed.value)
