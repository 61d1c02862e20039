"""A login role with little, as an operator who only looks has it."""

from __future__ import annotations

import contextlib
import itertools
import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

_numbers = itertools.count(1)


@contextlib.asynccontextmanager
async def role(connection: asyncpg.Connection, dsn: str) -> AsyncIterator[tuple[str, str]]:
    """Make a role that may log in; yields its name and the DSN of its connections."""
    name = f"outboxd_test_{os.getpid()}_{next(_numbers)}"
    await connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{name}'")
    parts = urlsplit(dsn)
    place = parts.netloc.rpartition("@")[2]
    try:
        yield name, urlunsplit(parts._replace(netloc=f"{name}:{name}@{place}"))
    finally:
        await connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


@contextlib.asynccontextmanager
async def reading_role(connection: asyncpg.Connection, dsn: str, *tables: str) -> AsyncIterator[str]:
    """Make a role that may read these tables and outboxd's own; yields the DSN of its connections."""
    async with role(connection, dsn) as (name, its_dsn):
        await connection.execute(f"GRANT SELECT ON {', '.join(tables)} TO {name}")
        await connection.execute(
            f"GRANT USAGE ON SCHEMA outboxd TO {name}; GRANT SELECT ON ALL TABLES IN SCHEMA outboxd TO {name}"
        )
        yield its_dsn
