"""`couponsvc migrate`: brings the database to this version's schema, once, and ends."""

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from couponsvc.ledger.migrate import SchemaRefused, migrate
from couponsvc.processes.running import EXIT_NOT_SO, EXIT_USAGE, ProcessFailed


class MigrateSettings(BaseSettings):
    """All that a migration needs: no Redis, no master key."""

    model_config = SettingsConfigDict(env_prefix="COUPONSVC_", extra="ignore", frozen=True)

    postgres_dsn: SecretStr = Field(description="postgresql://user:password@host:port/database")


async def run_migrate() -> None:
    """Migrate the database of `COUPONSVC_POSTGRES_DSN` and say what was applied.

    Raises:
        ProcessFailed: no DSN, or the database's history is not ours.
    """
    try:
        settings = MigrateSettings()
    except ValidationError:
        raise ProcessFailed("set COUPONSVC_POSTGRES_DSN to the database to migrate", EXIT_USAGE) from None
    await migrate_and_tell(settings.postgres_dsn.get_secret_value())


async def migrate_and_tell(dsn: str) -> None:
    """Migrate and print one line.

    Raises:
        ProcessFailed: the database's history is not ours.
        OSError, asyncpg.PostgresError: the server cannot be reached or refuses.
    """
    try:
        applied = await migrate(dsn)
    except SchemaRefused as error:
        raise ProcessFailed(str(error), EXIT_NOT_SO) from error
    print(f"migrated: {', '.join(applied)}" if applied else "schema is current", flush=True)  # noqa: T201
