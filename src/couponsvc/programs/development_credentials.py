"""Credentials that `couponsvc up` makes at its first start, for whoever tries the service."""

from typing import Final

from couponsvc.programs import admission
from couponsvc.programs.admission import Pool
from couponsvc.programs.credential import CredentialRequest, Holder, Kind, NewCredential
from couponsvc.support.sealing import MasterKey

DEVELOPMENT_LABEL: Final = "development"
DEVELOPMENT_PARTNER: Final = "bank-a"


async def create_development_credentials(
    pool: Pool, master_key: MasterKey
) -> dict[str, dict[str, str]] | None:
    """Make the credentials of `<data-dir>/credentials.json`, all or none.

    Returns:
        Contract: `{"operator":{"token"},"auditor":{"token"},"partner":{"partner_id","key_id",
        "secret","token"}}`; None where they were made before, because they are shown once.
    """
    actor = "cli"
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(admission.SQL["lock_development_credentials"])
        if await connection.fetchval(admission.SQL["find_labelled_credential"], DEVELOPMENT_LABEL):
            return None
        name = "Bank A (development)"
        if await connection.fetchval(admission.SQL["insert_partner"], DEVELOPMENT_PARTNER, name) is not None:
            await admission.record_operation(
                connection, actor, "partner.create", DEVELOPMENT_PARTNER, {"name": name}
            )

        async def make(holder: Holder, kind: Kind) -> NewCredential:
            partner_id = DEVELOPMENT_PARTNER if holder == "partner" else None
            request = CredentialRequest(holder, kind, partner_id, label=DEVELOPMENT_LABEL)
            return await admission.add_credential(connection, master_key, actor, request)

        operator = await make("operator", "bearer")
        auditor = await make("auditor", "bearer")
        signing = await make("partner", "hmac-sha256")
        bearer = await make("partner", "bearer")
    return {
        "operator": {"token": operator.token or ""},
        "auditor": {"token": auditor.token or ""},
        "partner": {
            "partner_id": DEVELOPMENT_PARTNER,
            "key_id": signing.key_id,
            "secret": signing.secret or "",
            "token": bearer.token or "",
        },
    }
