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
async def reading_role(connection: asyncpg.Connection, dsn: str, *tables: str) -> AsyncIterator[str]:
    """Make a role that may read these tables and outboxd's own; yields the DSN of its connections."""
    name = f"outboxd_test_{os.getpid()}_{next(_numbers)}"
    await connection.execute(f"CREATE ROLE {name} LOGIN; GRANT SELECT ON {', '.join(tables)} TO {name}")
    await connection.execute(
        f"GRANT USAGE ON SCHEMA outboxd TO {name}; GRANT SELECT ON ALL TABLES IN SCHEMA outboxd TO {name}"
    )
    parts = urlsplit(dsn)
    place = parts.netloc.rpartition("@")[2]
    try:
        yield urlunsplit(parts._replace(netloc=f"{name}@{place}"))
    finally:
        await connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
