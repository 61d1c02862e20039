"""Here every test's database is migrated, with one outbox of each kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg
import pytest

from outboxd.migrate import migrate
from tests.drains import STANDARD

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.conftest import Postgres


@pytest.fixture(scope="session")
async def template(postgres: Postgres, template: str) -> AsyncIterator[str]:
    """The name of the prepared database; nobody is connected to it, or it could not be copied."""
    name = f"{template}_migrated"
    await postgres.admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        connection = await asyncpg.connect(postgres.dsn_of(name))
        try:
            await migrate(connection, STANDARD)
        finally:
            await connection.close()
        yield name
    finally:
        await postgres.admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
