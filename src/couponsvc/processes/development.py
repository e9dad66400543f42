"""Credentials that `up` makes on first start: an operator, an auditor and a partner to try with."""

import msgspec

from couponsvc.programs.admission import create_development_credentials
from couponsvc.support.postgres import open_pool
from couponsvc.support.sealing import MasterKey


async def development_credentials(dsn: str, master_key: str) -> str:
    """Admit them and write what `credentials.json` holds: shown nowhere else, stored only sealed.

    Raises:
        OSError, asyncpg.PostgresError: the database cannot be reached or refuses.
    """
    async with await open_pool(dsn, max_size=1) as pool:
        credentials = await create_development_credentials(pool, MasterKey.from_base64(master_key))
    return msgspec.json.format(msgspec.json.encode(credentials), indent=2).decode() + "\n"
