"""Configurations and databases for the tests of migrate, check and enqueue."""

from __future__ import annotations

import contextlib
import itertools
import os
from typing import TYPE_CHECKING, Any

from outboxd.config import CategoryConfig, Config, KeyType, OutboxConfig, ScopeConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.conftest import Postgres

CONTROL_COLUMNS = ["region_name", "shard_scope", "shard_identifier"]

# As the field's frameworks create it: no defaults, no headers, varchar and int keys.
APPLICATION_TABLE = """
CREATE TABLE outbox (
    id bigserial PRIMARY KEY,
    shard_scope smallint NOT NULL,
    shard_identifier integer NOT NULL,
    category integer NOT NULL,
    object_identifier varchar(40) NOT NULL,
    payload jsonb,
    scheduled_from timestamptz NOT NULL,
    scheduled_for timestamptz NOT NULL,
    date_added timestamptz NOT NULL
)"""

TOML = """
dsn = "{dsn}"

[receivers]
modules = ["check_receivers"]

[[outbox]]
name = "region"
table = "outbox"

[[outbox]]
name = "control"
table = "control_outbox"
silo = "control"
key_type = "uuid"
sharding_columns = ["region_name", "shard_scope", "shard_identifier"]

[scopes.ORGANIZATION_SCOPE]
value = 0

[scopes.USER_SCOPE]
value = 1

[categories.MEMBER_UPDATE]
value = 3
scope = "ORGANIZATION_SCOPE"

[categories.USER_UPDATE]
value = 9
scope = "USER_SCOPE"
"""

RECEIVERS = """
from outboxd import receiver

@receiver("MEMBER_UPDATE", "USER_UPDATE")
async def replicate(message):
    pass
"""


_numbers = itertools.count(1)


@contextlib.asynccontextmanager
async def empty_database(postgres: Postgres) -> AsyncIterator[str]:
    """Make a database that was never migrated, which the tests' usual one is."""
    name = f"outboxd_test_{os.getpid()}_empty_{next(_numbers)}"
    await postgres.admin.execute(f"CREATE DATABASE {name}")
    try:
        yield postgres.dsn_of(name)
    finally:
        await postgres.admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def region(table: str = "outbox", key_type: KeyType = "bigint", name: str = "region") -> OutboxConfig:
    return OutboxConfig(name=name, table=table, key_type=key_type)


def control(table: str = "control_outbox", key_type: KeyType = "bigint") -> OutboxConfig:
    return OutboxConfig(
        name="control", table=table, silo="control", sharding_columns=CONTROL_COLUMNS, key_type=key_type
    )


def configuration(*outboxes: OutboxConfig, **keys: Any) -> Config:
    return Config(
        outbox=list(outboxes) or [region()],
        scopes={"ORGANIZATION_SCOPE": ScopeConfig(value=0), "USER_SCOPE": ScopeConfig(value=1)},
        categories=keys.pop("categories", {"MEMBER_UPDATE": CategoryConfig(value=3, scope="ORGANIZATION_SCOPE")}),
        **keys,
    )


def write_configuration(folder: Path, dsn: str, more: str = "", receivers: str = RECEIVERS) -> Path:
    """Write a configuration file and its receivers; return the file."""
    (folder / "check_receivers.py").write_text(receivers)
    file = folder / "outboxd.toml"
    file.write_text(TOML.format(dsn=dsn) + more)
    return file
