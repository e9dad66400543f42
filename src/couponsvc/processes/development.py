"""Credentials that `up` makes on first start: an operator, an auditor and a partner to try with."""

import msgspec

from couponsvc.programs.development_credentials import create_development_credentials
from couponsvc.support.postgres import open_pool
from couponsvc.support.sealing import MasterKey


async def development_credentials(dsn: str, master_key: str) -> str | None:
    """Admit them and write what `credentials.json` holds: shown nowhere else, stored only sealed.

    Returns:
        The file's text; None where this database has them already, because they are shown once.

    Raises:
        OSError, asyncpg.PostgresError: the database cannot be reached or refuses.
    """
    async with await open_pool(dsn, max_size=1) as pool:
        credentials = await create_development_credentials(pool, MasterKey.from_base64(master_key))
    if credentials is None:
        return None
    return msgspec.json.format(msgspec.json.encode(credentials), indent=2).decode() + "\n"
