"""Settings of a process, from the environment (`COUPONSVC_*`, twelve-factor)."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from couponsvc import limits


class Settings(BaseSettings):
    """Read with `Settings()`; every field is `COUPONSVC_<NAME>` in the environment.

    Raises:
        pydantic.ValidationError: a variable is missing or malformed; names which.
    """

    model_config = SettingsConfigDict(env_prefix="COUPONSVC_", extra="ignore", frozen=True)

    redis_url: str = Field(description="redis://host:port/0, rediss://… or unix:///path")
    postgres_dsn: SecretStr = Field(description="postgresql://user:password@host:port/database")
    master_key: SecretStr = Field(
        description="32 bytes in base64; seals partner secrets and keys the token hashes"
    )
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    shard: int = Field(default=0, ge=0, le=0, description="the only shard of this version")
    confirm_wait_ms: int = Field(default=limits.CONFIRM_WAIT_MS, ge=0, le=60_000)
    backlog_max_count: int = Field(default=limits.BACKLOG_MAX_COUNT, ge=1)
    neighbour_hold_ms: int = Field(
        default=limits.NEIGHBOUR_HOLD_MS,
        ge=0,
        le=1_500,
        description="how long a pressing partner's grab may be held for a modest one's sake; 0: never",
    )
    take_over_idle_ms: int = Field(default=limits.TAKE_OVER_IDLE_MS, ge=100)
    webhook_allow_private: bool = Field(
        default=False,
        description="deliver webhooks to private and loopback addresses, by plain http (development)",
    )
    events_kept_days: int = Field(
        default=0, ge=0, description="drop events older than this; 0: keep them for ever"
    )
    attempts_kept_days: int = Field(
        default=30, ge=1, description="drop the log of delivery attempts older than this"
    )
    nats_url: SecretStr | None = Field(default=None, description="nats://…: also publish events to JetStream")
    kafka_servers: str | None = Field(default=None, description="host:port,…: also publish events to Kafka")
    kafka_topic: str = Field(default="couponsvc.events", pattern=r"^[a-zA-Z0-9._-]{1,249}$")
    kafka_tls: bool = Field(default=False, description="talk TLS to Kafka")
    kafka_username: str | None = Field(default=None, description="log in to Kafka by SCRAM-SHA-512")
    kafka_password: SecretStr | None = None
    sinks_start: str = Field(
        default="beginning",
        pattern="^(beginning|now)$",
        description="where a broker begins that was never fed: with every event that is kept, or the next",
    )
    metrics_dir: Path | None = Field(
        default=None, description="shared by all processes of a machine; see docs/architecture.md"
    )
    log_format: str = Field(default="json", pattern="^(json|console)$")
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
    unsafe_servers: bool = Field(
        default=False, description="start even though a server setting can lose data (tests only)"
    )
