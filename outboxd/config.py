"""The configuration: its shape and bounds. `outboxd/config.toml` is its commented default for people."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from outboxd import dsn, errors

SiloMode = Literal["monolith", "region", "control"]
Silo = Literal["region", "control"]
KeyType = Literal["bigint", "uuid", "text"]

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Int4 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Name = Annotated[str, Meta(min_length=1, max_length=63)]

SECRETS = ("dsn", "session_dsn", "redis_url")
"""Keys of `Config` whose values may hold a password: never printed as they are."""

ENVIRONMENT = {
    "OUTBOX_DSN": "dsn",
    "OUTBOX_SESSION_DSN": "session_dsn",
    "OUTBOX_REDIS_URL": "redis_url",
    "OUTBOX_SILO_MODE": "silo_mode",
    "OUTBOX_CONCURRENCY": "drain.concurrency",
    "OUTBOX_POLL_INTERVAL_S": "drain.poll_interval_s",
    "OUTBOX_HTTP_LISTEN": "http.listen",
    "OUTBOX_BACKFILLS_PER_MINUTE": "backfill.backfills_per_minute",
    "OUTBOX_LOG_FORMAT": "log.format",
}
"""Variables that override the file; each also as `<NAME>_FILE`, which names a file with the value."""


class DrainConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[drain]`: how messages are found and delivered."""

    concurrency: Annotated[int, Meta(ge=1, le=10_000)] = 5
    poll_interval_s: Seconds = 1.0
    receiver_timeout_s: Seconds = 60.0
    grace_period_s: Annotated[float, Meta(ge=0, le=86_400)] = 30.0
    retry_on_new_message_s: Annotated[float, Meta(ge=0, le=86_400)] = 60.0
    turn_rows_max: Annotated[int, Meta(ge=1, le=100_000)] = 3_000
    turn_s_max: Seconds = 5.0
    backoff_rows_max: Annotated[int, Meta(ge=1, le=100_000)] = 1_000


class HttpConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[http]`: health and metrics."""

    listen: str = "127.0.0.1:9464"
    optional: bool = False


class BackfillConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[backfill]`: rate and watermark store."""

    backfills_per_minute: Annotated[int, Meta(ge=0, le=100_000_000)] = 10_000
    state: Literal["postgres", "redis"] = "postgres"
    pause_above_lag_s: Seconds = 60.0


class ProducerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[producer]`: applications that flush what they have written."""

    flush_timeout_s: Seconds = 10.0
    flush_connections: Annotated[int, Meta(ge=1, le=1_000)] = 5


class ReceiversConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[receivers]`: the Python modules whose `@receiver` functions are used."""

    modules: list[str] = []


class DeadLetterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[dead_letter]`: how long buried messages are kept."""

    keep_days: Annotated[int, Meta(ge=0, le=36_500)] = 30


class DoctorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[doctor]`: what `outboxd doctor` finds fault with."""

    lag_slo_s: Seconds = 60.0


class SentryConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[sentry]`: what is sent with the errors of receivers, where SENTRY_DSN is set."""

    send_payload: bool = False


class LogConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[log]`: format and level of the log on stderr."""

    format: Literal["auto", "json", "console"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class OutboxConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[[outbox]]`: one outbox table."""

    name: Name
    table: str
    silo: Silo = "region"
    sharding_columns: list[str] = msgspec.field(default_factory=lambda: ["shard_scope", "shard_identifier"])
    key_type: KeyType = "bigint"
    on_unhandled: Literal["fail", "discard"] = "fail"


class ScopeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[scopes.<NAME>]`: a kind of key that shards messages."""

    value: Int4
    tag: Annotated[str, Meta(min_length=1, max_length=63)] = "shard_identifier"
    disabled_shards_option: str = ""


class CategoryConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[categories.<NAME>]`: a kind of change; belongs to exactly one scope."""

    value: Int4
    scope: str
    coalesce: bool = True
    on_error: Literal["block", "skip"] = "block"
    max_attempts: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[[model]]`: a source table that messages are about."""

    table: str
    outbox: str
    category: str
    shard_identifier: str = ""
    shard_identifier_sql: str = ""
    object_identifier: str = "id"
    payload_sql: str = ""
    where_sql: str = ""
    region_names: list[str] = []
    region_names_sql: str = ""
    capture: bool = False
    capture_columns: list[str] = []
    capture_delete_payload_sql: str = ""
    tombstones: bool = False
    replication_version: Annotated[int, Meta(ge=0, le=2**31 - 2)] = 1


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole configuration, as merged from defaults, file, environment and flags."""

    dsn: str = ""
    session_dsn: str = ""
    redis_url: str = ""
    silo_mode: SiloMode = "monolith"
    schema: Name = "outboxd"
    drain: DrainConfig = DrainConfig()
    http: HttpConfig = HttpConfig()
    backfill: BackfillConfig = BackfillConfig()
    producer: ProducerConfig = ProducerConfig()
    receivers: ReceiversConfig = ReceiversConfig()
    dead_letter: DeadLetterConfig = DeadLetterConfig()
    doctor: DoctorConfig = DoctorConfig()
    sentry: SentryConfig = SentryConfig()
    log: LogConfig = LogConfig()
    outbox: list[OutboxConfig] = []
    scopes: dict[str, ScopeConfig] = {}
    categories: dict[str, CategoryConfig] = {}
    model: list[ModelConfig] = []

    @property
    def outboxes(self) -> list[OutboxConfig]:
        """The outboxes that this process drains in its silo mode."""
        return [o for o in self.outbox if self.silo_mode in ("monolith", o.silo)]

    def require_outboxes(self) -> list[OutboxConfig]:
        """
        Return `outboxes`, of which there is at least one.

        Raises:
            ConfigError: None is configured, or none for this silo mode.
        """
        if self.outboxes:
            return self.outboxes
        if not self.outbox:
            raise errors.ConfigError(
                ["no outbox is configured"],
                hint="Add an [[outbox]] with name and table; `outboxd init` writes an example.",
            )
        others = ", ".join(f"{o.name} ({o.silo})" for o in self.outbox)
        raise errors.ConfigError(
            [f'silo_mode is "{self.silo_mode}", but no outbox has this silo: {others}'],
            hint="Choose another silo_mode (OUTBOX_SILO_MODE), or set the outbox's silo.",
        )

    def shown(self) -> dict[str, Any]:
        """Return every key and value for display, without passwords."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return values | {name: dsn.masked(values[name]) for name in SECRETS}

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{name}={value!r}' for name, value in self.shown().items())})"

    def __rich_repr__(self) -> Any:
        # msgspec's own would show the passwords to rich.
        yield from self.shown().items()
